"""One bad item never ends a run: it is marked as missing, and the report says why."""

from __future__ import annotations

import json
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
from partition.extract.report import Extracted  # noqa: E402
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


def reasons(request: Request, kind: str = "missing") -> dict[Any, str]:
    return {entry["item"]: entry["reason"] for entry in json.loads(request.beside.read_text())[kind]}


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


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """`items.parquet` with texts of which item 1's title and item 3's only text are not UTF-8."""
    titles = pa.array([b"red toy", b"K\xf6ln", b"blue toy", b"\xff", b"", b"red lamp"])
    table = {"item": list("abcdef"), "title": titles, "about": ["soft", "steel lamp", None, None, "!!", ""]}
    pq.write_table(pa.table({**table, "price": [1.0, 2.5, float("nan"), None, None, 3.0]}), tmp_path / "items.parquet")
    return tmp_path / "items.parquet"


def encoded(items: Path, model: bool, **options: Any) -> tuple[Request, Extracted]:
    source: dict[str, Any] = {"model": str(tiny.bert(items.parent / "bert"))} if model else {"tfidf": "2"}
    request = Request(items=items, output=items.parent / "text.parquet", device=Device.CPU, **source, **options)
    return request, extract(request)


@pytest.mark.parametrize("model", [False, True])
def test_texts_that_are_not_utf8(texts: Path, model: bool) -> None:
    request, _ = encoded(texts, model, text=["title", "about"])
    missing = reasons(request)
    assert missing.pop("d") == "title: not UTF-8: byte 0xff at 0"
    assert missing == ({} if model else {"e": "its text has none of the terms"})
    assert reasons(request, "partly") == {"b": "title: not UTF-8: byte 0xf6 at 1"}
    assert missing_rows(request) == ([3] if model else [3, 4])


def test_numbers_are_texts_and_said_to_be(texts: Path) -> None:
    request, found = encoded(texts, False, text=["about", "price"])
    assert "  numbers used as texts: price" in found.report(request)
    assert reasons(request) == {"c": "no text", "d": "no text", "e": "its text has none of the terms"}


def test_as_many_dimensions_as_terms_and_texts_that_are_all_alike(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": range(3), "title": ["soft red toy"] * 3}), tmp_path / "items.parquet")
    request = Request(items=tmp_path / "items.parquet", output=tmp_path / "x.npy", text=["title"], tfidf="3")
    extract(request)
    values = np.load(request.output)
    assert values.shape == (3, 3)
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-6)
    assert json.loads(request.beside.read_text())["variance_kept"] == 1.0


def test_huge_texts_are_cut_before_the_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = TextEncoder.encode
    lengths: list[int] = []

    def watched(encoder: TextEncoder, pieces: Sequence[Piece]) -> np.ndarray:
        lengths.extend(len(piece.text or "") for piece in pieces)
        return encode(encoder, pieces)

    monkeypatch.setattr(TextEncoder, "encode", watched)
    titles = ["red toy " * 50_000, "red toy " * 12_500, "blue"]
    pq.write_table(pa.table({"item": [0, 1, 2], "title": titles}), tmp_path / "items.parquet")
    request, _ = encoded(tmp_path / "items.parquet", True, text=["title"])
    assert sorted(lengths) == [4, 99_999, 100_000]
    values = np.array(pq.read_table(request.output)["text"].to_pylist())
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)


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
