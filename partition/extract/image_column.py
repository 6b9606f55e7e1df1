"""A column of images: paths, bytes of files, or records {bytes, path} as in Hugging Face data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from partition.extract.images import Picture
from partition.extract.reasons import printable

_PATHS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")


def can_be_image(kind: pa.DataType) -> bool:
    """Whether the values of this type are paths, bytes, or records of them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(_is_field(field) for field in kind)
    return str(kind) in _PATHS + _BYTES or pa.types.is_null(kind)


def pictures_of(values: pa.Array, folder: Path) -> Iterator[Picture | None]:
    """The image of each value; None for a null or an empty value.

    Args:
        values: of a type that `can_be_image`.
        folder: the one that relative paths start from.
    """
    for value in _values(values):
        if not value:
            yield None
        elif isinstance(value, bytes):
            yield Picture(data=value)
        elif "://" in value:
            yield Picture(wrong=printable(f"{value}: images are not downloaded; give files"))
        else:
            yield Picture(path=folder / value)


def _values(values: pa.Array) -> list[str | bytes | None]:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_struct(values.type):
        fields = zip(values.type, values.flatten(), strict=True)
        # "bytes" comes first: a path beside them often leads nowhere.
        columns = [
            _values(column) for field, column in sorted(fields, key=lambda pair: pair[0].name) if _is_field(field)
        ]
        return [next(filter(None, row), None) for row in zip(*columns, strict=True)]
    try:
        return values.to_pylist()
    except UnicodeDecodeError:  # names of files may have bytes that are no characters
        names = values.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
        return [None if name is None else os.fsdecode(name) for name in names]


def _is_field(field: pa.Field) -> bool:
    return field.name in ("bytes", "path") and str(field.type) in _PATHS + _BYTES
