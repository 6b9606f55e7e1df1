"""`partition extract` with real loading code: small models are made, saved, and loaded from disk."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition import cli as command
from partition.build import build
from partition.errors import InputError
from partition.extract import run as running
from partition.extract.encoders import TextEncoder
from partition.extract.request import Device, Request
from partition.extract.run import extract
from partition.folder.manifest import read_manifest
from partition.options import BuildOptions, CutMethod

for package in ("sentence_transformers", "sklearn", "torchvision", "transformers"):
    pytest.importorskip(package, reason="no extra `extract`: make extract installs it")

from PIL import Image  # noqa: E402

from tests.support import tiny_models as tiny  # noqa: E402

TITLES = ["red soft toy", "blue chair", "", "large steel lamp for the garden", None, "small cotton baby toy", "green"]
BROKEN, ABSENT = 3, 5  # the image of row 3 is truncated; row 5 has none


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A catalogue with string ids, a list of sentences, pictures in a folder and as paths."""
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    ids = [f"sku-{number}" for number in range(len(TITLES))]
    paths: list[str | None] = []
    for row, name in enumerate(ids):
        path = tmp_path / "pictures" / f"{name}.png"
        if row != ABSENT:
            pixels = generator.integers(0, 255, (40 + row, 36, 3), np.uint8)
            Image.fromarray(pixels).save(path)
            paths.append(f"pictures/{name}.png")
        else:
            paths.append(None)
    broken = tmp_path / "pictures" / f"sku-{BROKEN}.png"
    broken.write_bytes(broken.read_bytes()[:200])
    about = [["the toy"], [], None, ["with steel", "of steel"], None, [], []]
    columns = {"item_id": ids, "title": TITLES, "about": pa.array(about, pa.list_(pa.string())), "picture": paths}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    return tmp_path


def rows_of(shop: Path, **options: Any) -> tuple[np.ndarray, list[bool], dict[str, Any]]:
    output = shop / "out.parquet"
    request = Request(items=shop / "items.parquet", output=output, overwrite=True, device=Device.CPU, **options)
    extract(request)
    table = pq.read_table(output)
    assert table["item"].to_pylist() == [f"sku-{number}" for number in range(len(TITLES))]
    values = np.array(table[request.modality].to_pylist(), np.float32)
    return values, table["missing"].to_pylist(), json.loads(request.beside.read_text())


def test_text_encoder_is_the_mean_of_its_hidden_states(shop: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    path = tiny.bert(shop / "bert")
    values, missing, about = rows_of(shop, text=["title", "about"], model=str(path), batch_size=2)
    assert missing == [False, False, True, False, True, False, False]
    assert about["missing"] == [{"item": f"sku-{row}", "reason": "no text"} for row in (2, 4)]
    assert about["called_as"] == "text encoder, mean of the last hidden states"
    assert not values[[2, 4]].any()
    with torch.inference_mode():
        inputs = AutoTokenizer.from_pretrained(path)("red soft toy\nthe toy", return_tensors="pt")
        wanted = AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(values[0], wanted.numpy(), atol=1e-6)
    again, _, _ = rows_of(shop, text=["title", "about"], model=str(path), batch_size=7)
    np.testing.assert_allclose(values, again, atol=1e-6)


def test_a_decoder_gives_its_last_token(shop: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    path = tiny.decoder(shop / "llama")
    values, _, about = rows_of(shop, text=["title"], model=str(path))
    assert about["called_as"].startswith("text encoder, last")
    with torch.inference_mode():
        inputs = AutoTokenizer.from_pretrained(path)("blue chair", return_tensors="pt")
        hidden = AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state[0]
    np.testing.assert_allclose(values[1], hidden[-1].numpy(), atol=1e-5)
    first, _, _ = rows_of(shop, text=["title"], model=str(path), pooling="first")
    np.testing.assert_allclose(first[1], hidden[0].numpy(), atol=1e-5)


def test_sentence_transformers(shop: Path) -> None:
    from sentence_transformers import SentenceTransformer

    path = tiny.sentences(shop / "st")
    values, missing, about = rows_of(shop, text=["title"], model=str(path), fill="mean")
    wanted = SentenceTransformer(str(path), device="cpu").encode(["green"])
    np.testing.assert_allclose(values[6], wanted[0], atol=1e-6)
    there = ~np.array(missing)
    np.testing.assert_allclose(values[2], values[there].mean(0), atol=1e-6)
    assert (about["fill"], about["called_as"], about["dim"]) == ("mean", "sentence-transformers", 16)


def test_clip_has_texts_and_pictures_in_one_space(shop: Path) -> None:
    import torch
    from transformers import CLIPImageProcessor, CLIPModel

    path = tiny.clip(shop / "clip")
    pictures, missing, about = rows_of(shop, images="picture", model=str(path))
    assert about["called_as"] == "two towers, projected"
    assert missing == [row in (BROKEN, ABSENT) for row in range(len(TITLES))]
    assert [entry["item"] for entry in about["missing"]] == [f"sku-{ABSENT}", f"sku-{BROKEN}"]
    assert about["missing"][0]["reason"] == "no image"
    assert f"sku-{BROKEN}.png: " in about["missing"][1]["reason"]
    with torch.inference_mode():
        inputs = CLIPImageProcessor.from_pretrained(path)(
            Image.open(shop / "pictures" / "sku-0.png").convert("RGB"), return_tensors="pt"
        )
        wanted = CLIPModel.from_pretrained(path).eval().get_image_features(**inputs).pooler_output[0]
    np.testing.assert_allclose(pictures[0], wanted.numpy(), atol=1e-5)
    by_name, _, _ = rows_of(shop, images=str(shop / "pictures"), model=str(path))
    np.testing.assert_array_equal(pictures, by_name)
    texts, _, _ = rows_of(shop, text=["title"], model=str(path))
    assert texts.shape == pictures.shape
    with pytest.raises(InputError) as caught:
        rows_of(shop, text=["title"], images="picture", model=str(path))
    assert caught.value.code == "extract.input"


@pytest.mark.parametrize("make", [tiny.siglip, tiny.vit, tiny.resnet])
def test_picture_encoders(shop: Path, make: Any) -> None:
    values, missing, _ = rows_of(shop, images="picture", model=str(make(shop / "model")), dtype="float16")
    assert np.isfinite(values).all()
    assert values[[row for row, absent in enumerate(missing) if not absent]].any(1).all()
    assert not values[BROKEN].any()


def test_siglip_texts_do_not_depend_on_their_company(shop: Path) -> None:
    path = str(tiny.siglip(shop / "siglip"))
    together, _, _ = rows_of(shop, text=["title"], model=path)
    alone, _, _ = rows_of(shop, text=["title"], model=path, batch_size=1)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_multimodal_language_model_reads_both(shop: Path) -> None:
    path = str(tiny.llava(shop / "llava"))
    both, missing, about = rows_of(shop, text=["title"], images="picture", model=path)
    assert about["called_as"].startswith("multimodal language model, last")
    assert missing == [False] * len(TITLES)  # each has a title or a picture
    assert [entry["item"] for entry in about["partly"]] == [f"sku-{BROKEN}"]
    pictures, _, _ = rows_of(shop, images="picture", model=path)
    texts, _, _ = rows_of(shop, text=["title"], model=path)
    assert not np.allclose(both[0], pictures[0])
    assert not np.allclose(both[0], texts[0])
    np.testing.assert_allclose(both[2], pictures[2], atol=1e-5)  # no title
    np.testing.assert_allclose(both[ABSENT], texts[ABSENT], atol=1e-5)  # no picture
    np.testing.assert_allclose(both[BROKEN], texts[BROKEN], atol=1e-5)


def test_pictures_as_bytes(shop: Path) -> None:
    table = pq.read_table(shop / "items.parquet")
    data = [None if path is None else (shop / path).read_bytes() for path in table["picture"].to_pylist()]
    records = [{"bytes": each, "path": None} for each in data]
    path = str(tiny.vit(shop / "vit"))
    by_path, _, _ = rows_of(shop, images="picture", model=path)
    for column in (data, records):
        pq.write_table(table.drop(["picture"]).append_column("picture", pa.array(column)), shop / "items.parquet")
        values, _, about = rows_of(shop, images="picture", model=path)
        np.testing.assert_array_equal(values, by_path)
        assert len(about["missing"]) == 2


def test_goes_on_where_it_was(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tiny.bert(shop / "bert"))
    monkeypatch.setattr(running, "BLOCK", 3)
    whole, _, _ = rows_of(shop, text=["title"], model=path)
    (shop / "out.parquet").unlink()
    calls: list[int] = []
    encode = TextEncoder.encode

    def stops(encoder: Any, pieces: Any) -> Any:
        calls.append(len(pieces))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(encoder, pieces)

    monkeypatch.setattr(TextEncoder, "encode", stops)
    with pytest.raises(KeyboardInterrupt):
        rows_of(shop, text=["title"], model=path)
    assert not (shop / "out.parquet").exists()
    again, _, _ = rows_of(shop, text=["title"], model=path)
    assert calls == [2, 2, 2, 1]  # the first block, with two titles, was not encoded again
    np.testing.assert_allclose(again, whole, atol=1e-6)
    assert not list(shop.glob(".*.work"))


def test_a_full_gpu_says_what_to_do_and_keeps_what_is_done(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def full(encoder: Any, pieces: Any) -> Any:
        raise torch.OutOfMemoryError

    path = str(tiny.bert(shop / "bert"))
    monkeypatch.setattr(running, "load_encoder", lambda request: type("Full", (), {"kind": "", "encode": full})())
    with pytest.raises(InputError) as caught:
        rows_of(shop, text=["title"], model=path)
    assert caught.value.code == "extract.memory"
    assert list(shop.glob(".*.work"))


def test_tfidf_places_new_texts_where_the_catalogue_would(shop: Path) -> None:
    values, missing, about = rows_of(shop, text=["title", "about"], tfidf="3")
    assert values.shape == (len(TITLES), 3)
    assert missing == [False, False, True, False, True, False, False]
    kept = shop / "out.parquet.tfidf.npz"
    assert about["tfidf"] == kept.name
    toys = values[[0, 5]] / np.linalg.norm(values[[0, 5]], axis=1, keepdims=True)
    assert toys[0] @ toys[1] > 0.5
    output = shop / "new.npy"
    extract(Request(items=shop / "items.parquet", output=output, text=["title", "about"], tfidf=str(kept)))
    np.testing.assert_allclose(np.load(output), values, atol=1e-6)


def test_the_rows_are_what_build_reads(shop: Path) -> None:
    path = str(tiny.clip(shop / "clip"))
    for name, source in (("image", {"images": "picture"}), ("text", {"text": ["title"]})):
        extract(Request(items=shop / "items.parquet", output=shop / f"{name}.parquet", model=path, **source))
    generator = np.random.default_rng(1)
    log = pa.table(
        {
            "user": [f"u{number % 9}" for number in range(60)],
            "item": [f"sku-{number}" for number in generator.integers(0, len(TITLES), 60)],
        }
    )
    (shop / "log").mkdir()
    pq.write_table(log, shop / "log" / "log.parquet")
    features = [f"image={shop / 'image.parquet'}", f"text={shop / 'text.parquet'}"]
    build(
        BuildOptions(
            input=[str(shop / "log")],
            output=shop / "prepared",
            parts=2,
            features=features,
            missing=["image=mask", "text=zeros"],
            method=CutMethod.RANDOM,
        )
    )
    manifest = read_manifest(shop / "prepared")
    assert [(modality.name, modality.dim) for modality in manifest.modalities] == [("image", 8), ("text", 8)]
    assert manifest.items == len(TITLES)
    assert [modality.masked for modality in manifest.modalities] == [True, False]
    for name in ("image", "text"):
        flags = pq.read_table(shop / f"{name}.parquet")["missing"].to_pylist()
        assert manifest.counts.get(f"missing_{name}", 0) == sum(flags)
    assert manifest.counts["missing_image"] > 0


def test_csv_and_numbers_as_ids(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("asin,title\n7,red toy\n3,\n12,blue toy\n")
    output = tmp_path / "text.parquet"
    extract(Request(items=tmp_path / "items.csv", output=output, text=["title"], tfidf="1"))
    table = pq.read_table(output)
    assert table["item"].to_pylist() == [7, 3, 12]
    assert table["missing"].to_pylist() == [False, True, False]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"text": ["title"]}, "extract.encoder"),
        ({"tfidf": "4"}, "extract.source"),
        ({"images": "picture", "tfidf": "4"}, "extract.encoder"),
        ({"text": ["name"], "tfidf": "4"}, "column.missing"),
        ({"text": ["title"], "tfidf": "400"}, "option.tfidf"),
        ({"text": ["title"], "tfidf": "absent.npz"}, "option.tfidf"),
        ({"text": ["title"], "model": "./absent"}, "extract.model"),
        ({"text": ["title"], "model": "vit"}, "extract.input"),
        ({"images": "picture", "model": "bert"}, "extract.input"),
        ({"images": "nowhere", "model": "vit"}, "extract.image"),
        ({"images": "picture", "model": "torn"}, "extract.weights"),
        ({"images": "picture", "model": "resnet", "pooling": "first"}, "extract.pooling"),
        ({"text": ["title"], "model": "empty"}, "extract.model"),
        ({"text": ["title"], "tfidf": "1", "name": "a b"}, "features.name"),
    ],
)
def test_refusals(shop: Path, options: dict[str, Any], code: str) -> None:
    if options.get("model") in ("vit", "bert", "resnet"):
        options = {**options, "model": str(getattr(tiny, options["model"])(shop / options["model"]))}
    elif options.get("model") == "torn":
        from safetensors.torch import load_file, save_file

        path = tiny.vit(shop / "vit")
        weights = load_file(path / "model.safetensors")
        weights.pop(next(name for name in sorted(weights) if "attention" in name))
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        options = {**options, "model": str(path)}
    elif options.get("model") == "empty":
        (shop / "empty").mkdir()
        options = {**options, "model": str(shop / "empty")}
    before = sorted(path.name for path in shop.iterdir())
    with pytest.raises(InputError) as error:
        rows_of(shop, **options)
    assert error.value.code == code
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in shop.iterdir()) == before


def test_an_id_listed_twice_and_nothing_to_encode(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("item,title\na,red\nb,blue\na,green\n")
    with pytest.raises(InputError, match=r"twice.csv: column 'item', row 2 \(line 4\)") as caught:
        extract(Request(items=tmp_path / "twice.csv", output=tmp_path / "x.parquet", text=["title"], tfidf="1"))
    assert caught.value.code == "ids.duplicate"
    (tmp_path / "bare.csv").write_text("item,title\na,\nb,\n")
    with pytest.raises(InputError) as caught:
        extract(Request(items=tmp_path / "bare.csv", output=tmp_path / "x.parquet", text=["title"], tfidf="1"))
    assert caught.value.code == "extract.nothing"


def test_two_pictures_of_one_item(shop: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    (shop / "pictures" / "sku-0.jpg").write_bytes(buffer.getvalue())
    with pytest.raises(InputError) as caught:
        rows_of(shop, images=str(shop / "pictures"), model="bert")
    assert caught.value.code == "extract.image"


def test_the_command(shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    output = shop / "features" / "image_feat.npy"
    arguments = ["--items", shop / "items.parquet", "--images", "picture", "--model", tiny.vit(shop / "vit")]
    for more, code in (([], 0), ([], 2), (["--overwrite"], 0)):
        monkeypatch.setattr("sys.argv", ["partition", "extract", *map(str, arguments), "--output", str(output), *more])
        with pytest.raises(SystemExit) as stopped:
            command.main()
        assert (stopped.value.code or 0) == code
        said = capsys.readouterr()
        if code:
            assert said.err == f"error[output.exists]: {output}: exists already; add --overwrite to replace it\n"
        else:
            lines = said.out.splitlines()
            assert lines[0] == f"{output}: 7 items, 16 wide; 2 missing, filled with zeros"
            assert lines[1] == f"  1 without image; first: item 'sku-{ABSENT}'"
            broken = shop / "pictures" / f"sku-{BROKEN}.png"
            assert lines[2].startswith(f"  1 not encoded; first: item 'sku-{BROKEN}': {broken}: ")
            assert lines[3] == f"  all are listed in {output}.json"
            assert lines[4].startswith("Next: python -m partition build --input LOG --features image=")
    assert np.load(output).shape == (7, 16)
