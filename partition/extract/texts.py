"""The texts in a column of a table, value by value."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_STRINGS = ("string", "large_string", "string_view")
_BYTES = ("binary", "large_binary", "binary_view")


def can_be_text(kind: pa.DataType) -> bool:
    """Whether the values of this type are texts, lists of texts, or numbers."""
    kind = _plain_type(kind)
    if any(is_list(kind) for is_list in _LISTS):
        return can_be_text(kind.value_type)
    return is_number(kind) or pa.types.is_null(kind) or _is_text(kind)


def is_number(kind: pa.DataType) -> bool:
    """Whether the values are numbers, which are encoded as they are written."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def texts_of(values: pa.Array) -> tuple[list[str | None], dict[int, str]]:
    """The text of each value, stripped; None for a null, an empty text, an empty list, and NaN.

    Args:
        values: of a type that `can_be_text`.

    Returns:
        The texts, and why some of them cannot be used, by place: bytes that are not UTF-8. Their text is None.
    """
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return texts_of(values.storage)
    if pa.types.is_dictionary(kind):
        return texts_of(values.cast(kind.value_type))
    if any(is_list(kind) for is_list in _LISTS):
        return _joined(values)
    if _is_text(kind):
        return _decoded(values)
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    return pc.cast(values, pa.string()).to_pylist(), {}


def _decoded(values: pa.Array) -> tuple[list[str | None], dict[int, str]]:
    if str(values.type) in _BYTES:
        values = values.cast(pa.large_binary())
    else:
        try:
            return [_cleaned(text) for text in values.to_pylist()], {}
        except UnicodeDecodeError:  # tables are not checked when they are written or read
            values = values.cast(pa.large_string()).cast(pa.large_binary())
    texts: list[str | None] = []
    wrong: dict[int, str] = {}
    for place, data in enumerate(values.to_pylist()):
        try:
            texts.append(None if data is None else _cleaned(data.decode("utf-8")))
        except UnicodeDecodeError as error:
            texts.append(None)
            wrong[place] = f"not UTF-8: byte {data[error.start]:#04x} at {error.start:,}"
    return texts, wrong


def _joined(values: pa.Array) -> tuple[list[str | None], dict[int, str]]:
    """The texts of each list, with blanks between them."""
    pieces, wrong_pieces = texts_of(values.flatten())
    texts: list[str | None] = []
    wrong: dict[int, str] = {}
    begin = 0
    for place, length in enumerate(pc.list_value_length(values).fill_null(0).to_pylist()):
        texts.append(" ".join(filter(None, pieces[begin : begin + length])) or None)
        for number in range(begin, begin + length):
            if number in wrong_pieces:
                texts[-1] = None
                wrong[place] = wrong_pieces[number]
        begin += length
    return texts, wrong


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in _STRINGS + _BYTES


def _cleaned(text: str | None) -> str | None:
    return (text or "").strip() or None
