"""Texts that cannot be encoded, are huge, or are numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

for package in ("sentence_transformers", "sklearn", "torchvision", "transformers"):
    pytest.importorskip(package, reason="no extra `extract`: make extract installs it")

from partition.extract.encoders import Piece, TextEncoder, _pooled  # noqa: E402
from partition.extract.report import Extracted  # noqa: E402
from partition.extract.request import Device, Pooling, Request  # noqa: E402
from partition.extract.run import extract  # noqa: E402
from tests.support import tiny_models as tiny  # noqa: E402


def missing_rows(request: Request) -> list[int]:
    return np.flatnonzero(pq.read_table(request.output)["missing"]).tolist()


def reasons(request: Request, kind: str = "missing") -> dict[Any, str]:
    return {entry["item"]: entry["reason"] for entry in json.loads(request.beside.read_text())[kind]}


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_a_text_without_tokens_has_no_row(pooling: str) -> None:
    import torch

    hidden = torch.arange(24.0).reshape(3, 4, 2)
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    rows = _pooled(hidden, mask, Pooling(pooling))
    wanted = {"mean": (5.0, 17.0), "first": (4.0, 16.0), "last": (6.0, 18.0)}[pooling]
    assert rows[[0, 2], 0].tolist() == list(wanted)
    assert rows[1].isnan().all()


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


@pytest.mark.parametrize("quoted", [False, True])
def test_text_files_in_part_of_another_encoding(tmp_path: Path, quoted: bool) -> None:
    first = '"red, ""soft"" toy"' if quoted else "red toy"
    lines = ["item,title", f"1,{first}", "2,K\xf6ln", "3,", "4,blue toy"]
    (tmp_path / "items.csv").write_bytes("\n".join(lines).encode("latin-1"))
    request, _ = encoded(tmp_path / "items.csv", False, text=["title"])
    assert reasons(request) == {3: "no text", 2: "title: not UTF-8: byte 0xf6 at 1"}
    assert missing_rows(request) == [1, 2]
    assert pq.read_table(request.output)["item"].to_pylist() == [1, 2, 3, 4]


def test_a_column_named_twice_counts_twice(texts: Path) -> None:
    request, _ = encoded(texts, True, text=["about", "about"])
    twice = pq.read_table(request.output)["text"].to_pylist()
    encoded(texts, True, text=["about"], overwrite=True)
    once = pq.read_table(request.output)["text"].to_pylist()
    assert twice[2] == once[2]
    assert twice[0] != once[0]


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
