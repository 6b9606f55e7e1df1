"""External ids of users and items (whole numbers or text), and the indices 0, 1, 2, ... that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition import columns_on_disk as blocks
from partition.read.table_file import ENCODED, TableFile, first_null

# A number as a program writes it: "007" and "1e3" are text. 18 digits always fit int64.
_WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,17})$"


@dataclass(frozen=True)
class IdColumn:
    """The id column of one file."""

    file: TableFile
    column: str
    codes: np.ndarray  # [rows] int32 index into `values`; memory-mapped
    values: pa.Array  # [n] integers or strings, each once; some may occur in no row

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def read(cls, file: TableFile, column: str, folder: Path | None = None) -> IdColumn:
        """Reads one column; its codes go into a file in `folder`.

        Raises:
            InputError: a null, or a type that is neither whole number nor text.
        """
        reader = IdReader(file, column, folder)
        for batch in file.batches([column], blocks.BLOCK, [column]):
            reader.add(batch.column(0))
        return reader.done()


class IdReader:
    """Reads a column batch by batch: distinct ids stay in memory, the code of every row goes into a file."""

    def __init__(self, file: TableFile, column: str, folder: Path | None) -> None:
        kind = ENCODED if file.schema is None else file.schema.field(column).type
        self._file, self._column = file, column
        self._codes = blocks.Growing(np.int32, folder)
        self._values = [self._plain(pa.array([], kind)).dictionary]  # the first is merged, the others wait
        self._merged = 0  # rows whose codes are final

    def add(self, values: pa.Array) -> None:
        """Adds the next rows.

        Raises:
            InputError: a null, or a type that is neither whole number nor text.
        """
        plain = self._plain(values)
        offset = sum(map(len, self._values))
        self._codes.append(plain.indices.to_numpy(zero_copy_only=False) + np.int32(offset))
        self._values.append(plain.dictionary)
        # A merge takes time in proportion to all ids, so it waits until as many are new.
        if offset + len(plain.dictionary) > max(blocks.BLOCK, 2 * len(self._values[0])):
            self._merge()

    def done(self) -> IdColumn:
        """The whole column."""
        self._merge()
        return IdColumn(self._file, self._column, self._codes.column(), self._values[0])

    def _merge(self) -> None:
        values, number = merged(self._values)
        self._values = [values]
        codes = self._codes.column()[self._merged :]
        for rows in blocks.slices(len(codes)):
            codes[rows] = number[codes[rows]]
        self._merged += len(codes)

    def _plain(self, values: pa.Array) -> pa.DictionaryArray:
        """The ids as dictionary-encoded integers or strings."""
        kind = values.type
        if pa.types.is_dictionary(kind) and kind != ENCODED:
            values, kind = values.cast(kind.value_type), kind.value_type
        if pa.types.is_large_string(kind):
            values, kind = values.cast(pa.string()), pa.string()
        known = kind == ENCODED or pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
        if not known:
            message = f"has type {kind}; ids are whole numbers or text"
            raise self._file.error(message, self._column, code="ids.type")
        if values.null_count:
            row = len(self._codes) + first_null(values)
            raise self._file.error("the id is missing", self._column, row, code="ids.missing")
        if pa.types.is_null(kind):
            values = values.cast(pa.int64())
        return values if kind == ENCODED else values.dictionary_encode()


def merged(arrays: Sequence[pa.Array]) -> tuple[pa.Array, np.ndarray]:
    """The distinct values of several arrays, in order of appearance; and the index of every value among them, int32."""
    encoded = pa.chunked_array(arrays, arrays[0].type).dictionary_encode().unify_dictionaries()
    number = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    values: pa.Array = encoded.chunk(0).dictionary if number else arrays[0]  # all are empty
    return values, np.concatenate([np.empty(0, np.int32), *number])


def encode(columns: Sequence[IdColumn], folder: Path | None = None) -> tuple[pa.Array, list[np.ndarray]]:
    """Numbers the ids of several columns together, in ascending order of the ids.

    The order of rows and files therefore does not affect the numbers. Ids from text files are whole numbers if every
    one of them is written as a whole number, else text.

    Returns:
        ids: [n] int64 or string, ascending; each occurs in a column.
        codes: per column, [rows] int32 index into `ids`, in files in `folder`.

    Raises:
        InputError: a negative id, or columns of numbers and of text.
    """
    values = [column.values for column in columns]
    numeric = [
        pa.types.is_integer(column.values.type) or (column.file.is_text and _all_whole_numbers(column.values))
        for column in columns
    ]
    if all(numeric):
        values = [_as_numbers(column) for column in columns]
    else:
        for column in columns:
            if pa.types.is_integer(column.values.type):
                other = columns[numeric.index(False)]
                raise column.file.error(
                    f"has numbers, but {other.file.path}, column {other.column!r} has text; make both the same",
                    column.column,
                    code="ids.mixed",
                )
    ids, place = merged(values)
    places = np.split(place, np.cumsum([len(own) for own in values])[:-1])
    used = np.zeros(len(ids), bool)
    for column, own in zip(columns, places, strict=True):
        for rows in blocks.slices(len(column)):
            used[own[column.codes[rows]]] = True
    order = pc.sort_indices(ids).to_numpy()
    order = order[used[order]]
    number = np.empty(len(ids), np.int32)
    number[order] = np.arange(len(order))
    codes = [blocks.mapped(number[own], column.codes, folder) for column, own in zip(columns, places, strict=True)]
    return ids.take(pa.array(order)), codes


def check_unique(column: IdColumn, ids: pa.Array, codes: np.ndarray) -> None:
    """Refuses a table that lists an id twice.

    Args:
        column: the ids of the table.
        ids: [n] as `encode` returns them.
        codes: [rows] as `encode` returns them.

    Raises:
        InputError: names the row in which an id is repeated.
    """
    order = np.argsort(codes, kind="stable")
    repeats = order[1:][np.diff(codes[order]) == 0]
    if len(repeats):
        row = int(repeats.min())
        message = f"{ids[int(codes[row])].as_py()!r} a second time; this table lists an id once"
        raise column.file.error(message, column.column, row, code="ids.duplicate")


def _all_whole_numbers(values: pa.Array) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, _WHOLE_NUMBER)).as_py() is not False)


def _as_numbers(column: IdColumn) -> pa.Array:
    """The values of a column as int64."""
    try:
        values = column.values.cast(pa.int64())
    except pa.ArrowInvalid:
        raise column.file.error("an id is above 2^63 - 1", column.column, code="ids.range") from None
    negative = values.to_numpy() < 0
    row = blocks.first(column.codes, lambda codes: negative[codes]) if negative.any() else None
    if row is not None:
        value = values[int(column.codes[row])].as_py()
        raise column.file.error(f"the id {value} is negative", column.column, row, code="ids.negative")
    return values
