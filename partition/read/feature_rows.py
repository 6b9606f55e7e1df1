"""Reads and checks the rows of one modality, from a NumPy file or from lists in tables, into a matrix in item order.

A row is missing if its list is null or empty, if all its values are null or NaN, if no table has a row for the item, or
if the table's boolean column `missing`, which `partition extract` writes, is true. A single null or NaN is an error.

Shapes: n rows of a block or batch, d values per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition.columns_on_disk import npy_file
from partition.errors import InputError
from partition.read.feature_sources import ListColumn, MatrixFile
from partition.read.feature_types import is_list_type, value_type
from partition.read.table_file import TableFile
from partition.transform.pca import row_blocks

BATCH = 8192  # rows of lists per batch
FLAG = "missing"  # boolean column of a table: true where the row stands for nothing
EXACT = 1 << 24  # whole numbers up to here are exact in float32


@dataclass(frozen=True)
class Matrix:
    """The rows of one modality for the whole catalogue."""

    values: np.ndarray  # [items, d] floats, memory-mapped; missing rows are zeros
    missing: np.ndarray | None  # [items] bool; None if no row is missing
    place: Callable[[int], str | None]  # item index -> file and row of its features; None if there is no such row


def read_matrix(source: MatrixFile, work: Path, target: Path) -> Matrix:
    """Reads a NumPy file.

    Args:
        source: the file.
        work: folder for the array of a .npz file.
        target: .npy file for a copy, which is made if rows are missing or values are whole numbers.

    Raises:
        InputError: `features.value`, a value is not finite or not exact in float32; `features.missing`, every row is
            missing; or as `MatrixFile`.
    """
    path, stored = source.path, source.values(work)
    missing, count, first = np.zeros(len(stored), bool), 0, ""
    for block in row_blocks(stored):
        rows = stored[block]
        bad = _unusable(rows)
        if not bad.any():
            continue
        missing[block] = np.isnan(rows).all(axis=1)
        at = np.flatnonzero(bad.any(axis=1) & ~missing[block])
        if len(at) and not count:
            column = int(np.argmax(bad[at[0]]))
            first = f"row {block.start + at[0]}, column {column}: the value is {_why(rows[at[0], column])}"
        count += len(at)
    if count:
        raise InputError(f"{path}: {first}; {count:,} of {len(stored):,} rows", "features.value")
    if missing.any() and missing.all():
        raise InputError(f"{path}: all {len(stored):,} rows are missing (NaN)", "features.missing")
    values = stored
    if missing.any() or stored.dtype.kind != "f":
        values = npy_file(target, stored.dtype if stored.dtype.kind == "f" else np.float32, stored.shape)
        for block in row_blocks(stored):
            values[block] = np.where(missing[block, None], 0, stored[block])
    return Matrix(values, missing if missing.any() else None, lambda item: f"{path}, row {item}")


def _unusable(values: np.ndarray) -> np.ndarray:
    """True where a value is not finite, or is a whole number that float32 does not hold."""
    if values.dtype.kind == "f":
        return ~np.isfinite(values)
    return (values > EXACT) | (values < -EXACT) if values.dtype.kind == "i" else values > EXACT


def _why(value: np.generic) -> str:
    if value.dtype.kind == "f":
        return f"{value}, not a number to use"
    return f"{value}, which float32 does not hold; store the values as double"


class _Faults:
    """The rows with one kind of fault: how many there are, and the first."""

    def __init__(self, column: str, code: str) -> None:
        self.column, self.code, self.count = column, code, 0
        self._first: tuple[TableFile, int, str] | None = None

    def add(self, table: TableFile, rows: np.ndarray, message: Callable[[int], str]) -> None:
        """Adds rows [n] of a table, ascending; `message` says what is wrong with the n-th of them."""
        if self._first is None and len(rows):
            self._first = table, int(rows[0]), message(0)
        self.count += len(rows)

    def check(self, total: int) -> None:
        """Raises InputError if there are any, of `total` rows."""
        if self._first is not None:
            table, row, message = self._first
            raise table.error(f"{message}; {self.count:,} of {total:,} rows", self.column, row, code=self.code)


def read_lists(source: ListColumn, items: int, target: Path) -> Matrix:
    """Reads lists from tables.

    Args:
        source: the tables and the item of every row.
        items: size of the catalogue.
        target: .npy file for the matrix.

    Raises:
        InputError: `features.value`, as `read_matrix`; `features.shape`, lists of unequal length; `features.dtype`,
            tables with different types; `features.missing`, every row is missing; or as `TableFile.batches`.
    """
    column, first = source.column, source.tables[0]
    shape, value = _Faults(column, "features.shape"), _Faults(column, "features.value")
    missing, begins, done = np.ones(items, bool), list[int](), 0
    matrix: np.ndarray | None = None
    for table in source.tables:
        begins.append(done)
        for batch in _batches(table, column):
            begin, done = done, done + batch.num_rows
            lists = _Lists.of(batch, table, column, begin - begins[-1], shape)
            if matrix is None and len(lists.row):
                matrix = npy_file(target, lists.kind, (items, int(lists.length[0])))
            if matrix is None:
                continue
            if matrix.dtype != lists.kind:
                message = f"is {lists.kind} here and {matrix.dtype} in another file"
                raise table.error(message, column, code="features.dtype")
            row, rows = lists.matrix(matrix.shape[1], shape, value)
            item = source.position[begin + row]
            matrix[item], missing[item] = rows, False
    shape.check(done)
    value.check(done)
    if matrix is None:
        message = f"all {done:,} rows are missing: null, empty, NaN, or marked in the column {FLAG!r}"
        raise first.error(
            message if done else "has no rows", column, code="features.missing" if done else "table.empty"
        )

    def place(item: int) -> str | None:
        at = np.flatnonzero(source.position == item)
        if not len(at):
            return None
        number = int(np.searchsorted(begins, at[0], side="right")) - 1
        return f"{source.tables[number].path}, row {int(at[0]) - begins[number]}"

    return Matrix(matrix, missing if missing.any() else None, place)


def _batches(table: TableFile, column: str) -> Iterator[pa.RecordBatch]:
    return table.batches([column, FLAG] if has_flags(table) else [column], BATCH)


def has_flags(table: TableFile) -> bool:
    """True if the table says which of its rows are missing."""
    if table.schema is None or FLAG not in table.names:
        return False
    return bool(pa.types.is_boolean(table.schema.field(FLAG).type))


@dataclass(frozen=True)
class _Lists:
    """The rows of a batch that are not missing."""

    table: TableFile
    first: int  # row of the table with which the batch begins
    row: np.ndarray  # [n] int64 their numbers within the batch, ascending
    length: np.ndarray  # [n] int64
    flat: np.ndarray  # [sum of the lengths] the values one list after the other; null is NaN
    kind: np.dtype  # of the matrix

    @staticmethod
    def of(batch: pa.RecordBatch, table: TableFile, column: str, first: int, shape: _Faults) -> _Lists:
        """Finds them; `shape` gets the rows that are lists of several lists."""
        lists = batch.column(column)
        kind = np.dtype(value_type(lists.type).to_pandas_dtype())
        given = np.ones(len(lists), bool)
        if FLAG in batch.schema.names:
            given = ~pc.fill_null(batch.column(FLAG), False).to_numpy(zero_copy_only=False)
        if isinstance(lists, pa.ExtensionArray):
            lists = lists.storage
        while is_list_type(lists.type.value_type):
            length = _lengths(lists)
            several = np.flatnonzero(given & (length > 1))
            shape.add(table, first + several, lambda n, of=length[several]: f"{of[n]} lists; an item has one")  # type: ignore[misc]
            given &= length == 1
            lists = lists.flatten().take(pa.array(np.cumsum(length) - 1, mask=length != 1))
            if isinstance(lists, pa.ExtensionArray):
                lists = lists.storage
        length = _lengths(lists)
        given &= length > 0
        row = np.flatnonzero(given)
        if len(row) < len(given):
            lists = lists.take(pa.array(row))
        flat, length = lists.flatten().to_numpy(zero_copy_only=False), length[row]
        there = ~np.isnan(flat)
        if not there.all():
            some = np.add.reduceat(there, np.cumsum(length) - length) > 0
            flat, row, length = flat[np.repeat(some, length)], row[some], length[some]
        return _Lists(table, first, row, length, flat, kind)

    def matrix(self, width: int, shape: _Faults, value: _Faults) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `width` values, [n] numbers within the batch and [n, width]; `shape` and `value` get the others.

        Rows with a value that cannot be used are among the result.
        """
        right = self.length == width
        odd, length = self.row[~right], self.length[~right]
        shape.add(self.table, self.first + odd, lambda n: f"a list of {length[n]} values; the first has {width}")
        row, rows = self.row[right], self.flat[np.repeat(right, self.length)].reshape(-1, width)
        bad = _unusable(rows)
        at = np.flatnonzero(bad.any(axis=1))

        def message(n: int) -> str:
            column = int(np.argmax(bad[at[n]]))
            return f"value {column} is {_why(rows[at[n], column])}"

        value.add(self.table, self.first + row[at], message)
        return row, rows


def _lengths(lists: pa.Array) -> np.ndarray:
    """[n] int64 lengths of lists; 0 for null."""
    length = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return length.astype(np.int64)
