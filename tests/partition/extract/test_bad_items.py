"""One bad item never ends a run: it is marked as missing, and the report says why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

for package in ("sentence_transformers", "sklearn", "torchvision", "transformers"):
    pytest.importorskip(package, reason="no extra `extract`: make extract installs it")

from PIL import Image  # noqa: E402

from partition.errors import InputError  # noqa: E402
from partition.extract import run as running  # noqa: E402
from partition.extract.encoders import ImageEncoder, Piece, TextEncoder  # noqa: E402
from partition.extract.encoding import BlockEncoder  # noqa: E402
from partition.extract.request import Device, Request  # noqa: E402
from partition.extract.run import extract  # noqa: E402
from tests.support import tiny_models as tiny  # noqa: E402

ITEMS = 11
TORN, STRIP, POISON, ABSENT = 2, 4, 5, 9  # items with a bad picture, or none
POISONED = (13, 13)  # size of the picture at which the encoder fails


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with `items.parquet`, whose items are numbers, and `images`, padded with zeros."""
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for item in range(ITEMS):
        size = {STRIP: (1, 20_000), POISON: POISONED}.get(item, (20 + item, 24))
        pixels = generator.integers(0, 256, (size[1], size[0], 3), np.uint8)
        if item != ABSENT:
            Image.fromarray(pixels).save(tmp_path / "images" / f"{item:04d}.png")
    torn = tmp_path / "images" / f"{TORN:04d}.png"
    torn.write_bytes(torn.read_bytes()[:300])
    (tmp_path / "images" / "Thumbs.db").touch()
    pq.write_table(pa.table({"item": range(ITEMS)}), tmp_path / "items.parquet")
    return tmp_path


def of_pictures(folder: Path, **options: Any) -> Request:
    model = folder / "vit"
    return Request(
        items=folder / "items.parquet",
        output=folder / "image.parquet",
        images=str(folder / "images"),
        model=str(model if model.exists() else tiny.vit(model)),
        **{"device": Device.CPU, "batch_size": 4, **options},
    )


def missing_rows(request: Request) -> list[int]:
    return np.flatnonzero(pq.read_table(request.output)["missing"]).tolist()


def reasons(request: Request) -> dict[Any, str]:
    return {entry["item"]: entry["reason"] for entry in json.loads(request.beside.read_text())["missing"]}


def poisoned(monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]) -> list[int]:
    """Makes the image encoder fail at `POISONED`; returns the sizes of its batches, which grow as it works."""
    encode = ImageEncoder.encode
    sizes: list[int] = []

    def fails(encoder: ImageEncoder, pieces: Sequence[Piece]) -> np.ndarray:
        sizes.append(len(pieces))
        if any(piece.image is not None and piece.image.size == POISONED for piece in pieces):
            raise error()
        return encode(encoder, pieces)

    monkeypatch.setattr(ImageEncoder, "encode", fails)
    return sizes


def panic() -> BaseException:
    return type("PanicException", (BaseException,), {})("unwrap on None")


@pytest.mark.parametrize("error", [lambda: RuntimeError(f"shape {object()}"), lambda: KeyError("pixels"), panic])
def test_a_batch_that_fails_loses_only_the_culprit(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException]
) -> None:
    whole = extract(of_pictures(pictures))
    good = pq.read_table(pictures / "image.parquet")["image"]
    assert whole.missing == 3
    sizes = poisoned(monkeypatch, error)
    request = of_pictures(pictures, overwrite=True)
    found = extract(request)
    assert sizes == [3, 3, 1, 1, 1, 2]  # of 4, 4 and 3 items, of which some had no readable image
    assert missing_rows(request) == [TORN, STRIP, POISON, ABSENT]
    assert reasons(request)[POISON].startswith("cannot be encoded: ")
    assert " at 0x" not in reasons(request)[POISON]
    values, wanted = (np.array(rows.to_pylist()) for rows in (pq.read_table(request.output)["image"], good))
    assert not values[POISON].any()
    kept = [item for item in range(ITEMS) if item != POISON]
    np.testing.assert_allclose(values[kept], wanted[kept], atol=1e-5)
    lines = found.report(request)
    assert lines[0].endswith(f"{ITEMS} items, 16 wide; 4 missing, filled with zeros")
    assert lines[1] == f"  1 without image; first: item {ABSENT}"
    assert lines[2].startswith(f"  3 not encoded; first: item {TORN}: {pictures / 'images' / '0002.png'}: ")
    assert lines[3] == f"  1 of {ITEMS} files in {pictures / 'images'} not used; first: Thumbs.db"


@pytest.mark.parametrize("after", range(1, 5))
def test_a_resumed_run_gives_the_same_bytes(pictures: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    monkeypatch.setattr(running, "BLOCK", 3)
    poisoned(monkeypatch, lambda: RuntimeError(f"shape {object()}"))
    request = of_pictures(pictures)
    extract(request)
    wanted = [path.read_bytes() for path in (request.output, request.beside)]
    for path in (request.output, request.beside):
        path.unlink()
    encode = BlockEncoder.encode
    calls: list[int] = []

    def stops(encoder: Any, block: Any) -> Any:
        calls.append(len(block))
        if len(calls) == after:
            raise KeyboardInterrupt
        return encode(encoder, block)

    monkeypatch.setattr(BlockEncoder, "encode", stops)
    with pytest.raises(KeyboardInterrupt):
        extract(request)
    assert not request.output.exists()
    extract(request)
    assert len(calls) == 5  # four blocks, one of them twice
    assert [path.read_bytes() for path in (request.output, request.beside)] == wanted
    assert not list(pictures.glob(".*.work"))


def test_a_text_that_the_processor_takes_for_a_picture(pictures: Path) -> None:
    titles = ["red toy", "blue <image> chair", "soft toy", *["lamp"] * (ITEMS - 3)]
    pq.write_table(pa.table({"item": range(ITEMS), "title": titles}), pictures / "items.parquet")
    request = of_pictures(pictures).model_copy(
        update={"text": ["title"], "model": str(tiny.llava(pictures / "llava")), "name": "both"}
    )
    extract(request)
    assert missing_rows(request) == [1]
    assert reasons(request)[1].startswith("cannot be encoded: ")


def test_who_stops_the_encoder_is_obeyed(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(of_pictures(pictures))


def test_an_encoder_that_fails_on_everything_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(encoder: Any, pieces: Sequence[Piece]) -> np.ndarray:
        calls.append(len(pieces))
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(TextEncoder, "encode", fails)
    pq.write_table(pa.table({"item": range(300), "title": ["red toy"] * 300}), tmp_path / "items.parquet")
    request = Request(
        items=tmp_path / "items.parquet",
        output=tmp_path / "x.npy",
        text=["title"],
        model=str(tiny.bert(tmp_path / "b")),
    )
    with pytest.raises(InputError, match="none of the first 64 items can be encoded; last: no kernel image") as caught:
        extract(request)
    assert caught.value.code == "extract.nothing"
    assert sum(calls) < 300
    few = tmp_path / "few.parquet"
    pq.write_table(pa.table({"item": [1, 2], "title": ["red toy"] * 2}), few)
    with pytest.raises(InputError, match=r"no item has anything .* in title; first: cannot be .*: no kernel image"):
        extract(request.model_copy(update={"items": few}))
    assert not (tmp_path / "x.npy").exists()


def test_memory_that_one_item_fills_is_its_own_fault(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    poisoned(monkeypatch, torch.OutOfMemoryError)
    with pytest.raises(InputError, match="smaller --batch-size") as caught:
        extract(of_pictures(pictures, batch_size=2))
    assert caught.value.code == "extract.memory"
    request = of_pictures(pictures, batch_size=1)
    extract(request)
    assert POISON in reasons(request)


def test_a_gpu_that_answers_no_more_ends_the_run_and_keeps_what_is_done(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def lost() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    request = of_pictures(pictures)
    with monkeypatch.context() as gpu:
        gpu.setattr(running, "BLOCK", 4)
        gpu.setattr(torch.cuda, "is_initialized", lambda: True)
        gpu.setattr(torch.cuda, "synchronize", lost)
        sizes = poisoned(gpu, lambda: RuntimeError("CUDA error: device-side assert triggered"))
        with pytest.raises(
            InputError, match="device-side assert triggered; the same command with --device cpu"
        ) as caught:
            extract(request)
    assert caught.value.code == "extract.device"
    assert sizes == [3, 3]  # the second block was not encoded item by item
    assert [path.name for path in pictures.glob(".*.work/rows-*")] == ["rows-00000000.npz"]


def test_rows_that_are_not_finite_or_too_large(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = ImageEncoder.encode

    def wild(encoder: ImageEncoder, pieces: Sequence[Piece]) -> np.ndarray:
        rows = encode(encoder, pieces)
        for row, piece in zip(rows, pieces, strict=True):
            if piece.image is not None and piece.image.size == POISONED:
                row[0] = np.nan
            if piece.image is not None and piece.image.size == (20, 24):  # item 0
                row[0] = 1e5
        return rows

    monkeypatch.setattr(ImageEncoder, "encode", wild)
    request = of_pictures(pictures, dtype="float16", fill="mean")
    extract(request)
    assert reasons(request)[POISON] == "the encoder's row is not finite"
    assert reasons(request)[0] == "its row is too large for --dtype float16"
    values = np.array(pq.read_table(request.output)["image"].to_pylist(), np.float64)
    given = [item for item in range(ITEMS) if item not in (0, TORN, STRIP, POISON, ABSENT)]
    for item in (0, POISON, ABSENT):
        np.testing.assert_allclose(values[item], values[given].mean(0), atol=2e-3)


def test_paths_in_a_text_file_are_bytes_of_any_kind(pictures: Path) -> None:
    shutil.copy(pictures / "images" / "0000.png", pictures / os.fsdecode(b"K\xf6ln.png"))
    (pictures / "items.csv").write_bytes(b"item,picture\n0,K\xf6ln.png\n1,images/0001.png\n2,\n")
    request = of_pictures(pictures).model_copy(update={"images": "picture", "items": pictures / "items.csv"})
    extract(request)
    assert reasons(request) == {2: "no image"}


def test_pictures_of_a_column_that_cannot_be_read(pictures: Path) -> None:
    for item in range(ITEMS):
        if item not in (TORN, ABSENT):
            shutil.copy(pictures / "images" / f"{item:04d}.png", pictures / f"{item}.png")
    paths: list[str | None] = [f"{item}.png" for item in range(ITEMS)]
    paths[TORN], paths[ABSENT], paths[7], paths[8] = None, "", "https://example.org/7.jpg", "a\0b.png"
    pq.write_table(pa.table({"item": range(ITEMS), "picture": paths}), pictures / "items.parquet")
    request = of_pictures(pictures).model_copy(update={"images": "picture"})
    extract(request)
    found = reasons(request)
    assert sorted(found) == sorted([TORN, STRIP, ABSENT, 7, 8])
    assert found[7] == "https://example.org/7.jpg: images are not downloaded; give files"
    assert found[8].endswith("embedded null byte")
    assert found[TORN] == found[ABSENT] == "no image"


def test_a_column_of_addresses_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    table = pa.table({"item": [1, 2], "url": ["https://example.org/1.jpg", None]})
    pq.write_table(table, tmp_path / "items.parquet")
    (tmp_path / "empty").mkdir()
    request = Request(
        items=tmp_path / "items.parquet", output=tmp_path / "x.npy", images="url", model=str(tmp_path / "empty")
    )
    with pytest.raises(
        InputError, match=r"in url; first: https://example.org/1.jpg: images are not downloaded"
    ) as caught:
        extract(request)
    assert caught.value.code == "extract.nothing"


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (pa.array([True]), {"text": ["value"], "tfidf": "1"}),
        (pa.array([7]), {"images": "value", "model": "x"}),
        (pa.array([["a.jpg"]]), {"images": "value", "model": "x"}),
        (pa.array([{"url": "a"}]), {"images": "value", "model": "x"}),
    ],
)
def test_columns_of_other_types_are_refused(tmp_path: Path, column: pa.Array, options: dict[str, Any]) -> None:
    pq.write_table(pa.table({"item": [1], "value": column}), tmp_path / "items.parquet")
    with pytest.raises(InputError, match="column 'value': has type ") as caught:
        extract(Request(items=tmp_path / "items.parquet", output=tmp_path / "x.parquet", **options))
    assert caught.value.code == ("extract.text" if "text" in options else "extract.image")
