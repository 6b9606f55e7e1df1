"""The users' and items' own ids, whole numbers or text, turned into indices 0, 1, 2 ... and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition.tables import ENCODED, TableFile

# A number as a program writes it: "007" and "1e3" are text. 18 digits always fit int64.
_WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,17})$"


@dataclass(frozen=True)
class IdColumn:
    """One file's column of ids."""

    file: TableFile
    column: str
    values: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.values)


def encode(columns: Sequence[IdColumn]) -> tuple[pa.Array, list[np.ndarray]]:
    """Numbers the ids of several columns together, in ascending order of the ids.

    The order of the rows and of the files therefore has no bearing on the numbers. Ids read from text files are whole
    numbers if every one of them is written as one, else text.

    Returns:
        ids: [n] int64 or string, ascending, each one in use.
        codes: per column, [rows] int64 position in `ids`.

    Raises:
        InputError: a null or negative id, a type that is neither whole number nor text, or columns of both kinds.
    """
    plain = [_plain(column) for column in columns]
    numeric = [
        pa.types.is_integer(values.type) or (column.file.is_text and _all_whole_numbers(values))
        for column, values in zip(columns, plain, strict=True)
    ]
    if all(numeric):
        plain = [_as_numbers(column, values) for column, values in zip(columns, plain, strict=True)]
    else:
        for column, values in zip(columns, plain, strict=True):
            if pa.types.is_integer(values.type):
                other = columns[numeric.index(False)]
                raise column.file.error(
                    f"has numbers, but {other.file.path}, column {other.column!r} has text; make both the same",
                    column.column,
                )
    chunks = [chunk for values in plain for chunk in values.chunks]
    joined = pa.chunked_array(chunks, plain[0].type).unify_dictionaries()
    ids: pa.Array = joined.chunk(0).dictionary if joined.num_chunks else pa.array([], plain[0].type.value_type)
    codes = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in joined.chunks]
    code = np.concatenate([np.empty(0, np.int64), *codes]).astype(np.int64, copy=False)

    used = np.zeros(len(ids), bool)
    used[code] = True
    order = pc.sort_indices(ids).to_numpy()
    order = order[used[order]]
    number = np.empty(len(ids), np.int64)
    number[order] = np.arange(len(order))
    return ids.take(pa.array(order)), np.split(number[code], np.cumsum([len(values) for values in plain])[:-1])


def _plain(column: IdColumn) -> pa.ChunkedArray:
    """Integers, or strings as `ENCODED`, without nulls."""
    values, kind = column.values, column.values.type
    if pa.types.is_dictionary(kind) and kind != ENCODED:
        values, kind = values.cast(kind.value_type), kind.value_type
    if pa.types.is_large_string(kind):
        values, kind = values.cast(pa.string()), pa.string()
    if pa.types.is_string(kind):
        values, kind = values.dictionary_encode(), ENCODED
    if kind != ENCODED and not pa.types.is_integer(kind) and not pa.types.is_null(kind):
        raise column.file.error(f"has type {kind}; ids are whole numbers or text", column.column)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise column.file.error("the id is missing", column.column, row)
    return values.cast(pa.int64()) if pa.types.is_null(kind) else values


def _all_whole_numbers(values: pa.ChunkedArray) -> bool:
    return all(pc.all(pc.match_substring_regex(chunk.dictionary, _WHOLE_NUMBER)).as_py() for chunk in values.chunks)


def _as_numbers(column: IdColumn, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same as dictionary-encoded int64."""
    kind = pa.dictionary(pa.int32(), pa.int64())
    try:
        chunks = [
            pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.int64()))
            for chunk in (values if values.type == ENCODED else values.dictionary_encode()).chunks
        ]
    except pa.ArrowInvalid:
        raise column.file.error("an id is above 2^63 - 1", column.column) from None
    numbers = pa.chunked_array(chunks, kind)
    if any(len(chunk.dictionary) and pc.min(chunk.dictionary).as_py() < 0 for chunk in chunks):
        plain = np.concatenate([chunk.dictionary.to_numpy()[chunk.indices.to_numpy()] for chunk in chunks])
        row = int(np.flatnonzero(plain < 0)[0])
        raise column.file.error(f"the id {plain[row]} is negative", column.column, row)
    return numbers
