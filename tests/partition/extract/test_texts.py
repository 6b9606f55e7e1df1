"""Texts of columns of every type."""

from __future__ import annotations

import decimal
from typing import Any

import pyarrow as pa
import pytest

from partition.extract.texts import can_be_text, texts_of


def strings_with_bad_bytes() -> pa.Array:
    """["ok", not UTF-8]; nothing checks what a file says is text."""
    offsets = pa.array([0, 2, 6], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"okK\xf6ln")])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (pa.array(["a", None, "", " \n"]), ["a", None, None, None]),
        (pa.array([" a ", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array([b"a", None], pa.binary()), ["a", None]),
        (pa.array([["a", "b"], [], None, [None, ""], ["c"]]), ["a b", None, None, None, "c"]),
        (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), ["a b", None]),
        (pa.array([["a"], ["b", "c"]]).slice(1), ["b c"]),
        (pa.array([1, None]), ["1", None]),
        (pa.array([1.5, float("nan"), None]), ["1.5", None, None]),
        (pa.array([[1, 2], []]), ["1 2", None]),
        (pa.array([decimal.Decimal("1.50")]), ["1.50"]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_texts(values: pa.Array, wanted: list[Any]) -> None:
    assert can_be_text(values.type)
    assert texts_of(values) == (wanted, {})


@pytest.mark.parametrize(
    "values",
    [
        strings_with_bad_bytes(),
        strings_with_bad_bytes().dictionary_encode(),
        strings_with_bad_bytes().cast(pa.large_string()),
        pa.array([b"ok", b"K\xf6ln"]),
        pa.ListArray.from_arrays([0, 1, 2], strings_with_bad_bytes()),
    ],
)
def test_bytes_that_are_not_utf8_are_named(values: pa.Array) -> None:
    assert texts_of(values) == (["ok", None], {1: "not UTF-8: byte 0xf6 at 1"})


def test_half_a_pair_of_utf16_is_not_utf8() -> None:
    texts, wrong = texts_of(pa.array([b"\xed\xa0\x80"]))  # U+D800, as some programs write it
    assert texts == [None]
    assert list(wrong) == [0]


@pytest.mark.parametrize("kind", [pa.bool_(), pa.date32(), pa.struct([("a", pa.string())]), pa.list_(pa.bool_())])
def test_other_types_are_no_texts(kind: pa.DataType) -> None:
    assert not can_be_text(kind)
