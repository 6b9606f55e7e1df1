"""Columns of interactions in files, handled a block of rows at a time, so that none has to fit in memory.

The files have no names: they go with the array that maps them, or with the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

BLOCK = 1 << 20  # rows


def column(rows: int, dtype: DTypeLike, folder: Path | None) -> np.ndarray:
    """A new [rows] column of `dtype` in a file in `folder`, by default in the system's for temporary files.

    Raises:
        OSError: the disk has no room for it.
    """
    length = max(1, rows)  # nothing cannot be mapped
    with tempfile.TemporaryFile(dir=folder) as file:
        # Without room set aside, whoever writes on a full disk later is killed.
        os.posix_fallocate(file.fileno(), 0, length * np.dtype(dtype).itemsize)
        values: np.ndarray = np.memmap(file, dtype, "r+", shape=(length,))
    return values[:rows]


class Growing:
    """A column whose length is not known beforehand."""

    def __init__(self, dtype: DTypeLike, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  open as long as it grows
        self._dtype, self._rows = np.dtype(dtype), 0

    def __len__(self) -> int:
        return self._rows

    def append(self, values: np.ndarray) -> None:
        """Adds [n] values."""
        self._file.write(values.astype(self._dtype, copy=False).tobytes())
        self._rows += len(values)

    def column(self) -> np.ndarray:
        """[rows] all values by now; what is written into them stays."""
        self._file.flush()
        if not self._rows:
            return np.empty(0, self._dtype)
        values: np.ndarray = np.memmap(self._file, self._dtype, "r+", shape=(self._rows,))
        self._file.seek(0, os.SEEK_END)
        return values


def index_type(limit: int) -> type[np.int32 | np.int64]:
    """The narrowest type for indices below `limit`."""
    return np.int32 if limit <= 2**31 else np.int64


def slices(rows: int) -> Iterator[slice]:
    """All rows, a block at a time."""
    return (slice(begin, min(begin + BLOCK, rows)) for begin in range(0, rows, BLOCK))


def slices_of_nodes(degree: np.ndarray) -> Iterator[slice]:
    """Rows of about a block that hold whole nodes, for columns sorted by node; `degree` [nodes] rows of each."""
    bounds = cuts(degree, BLOCK)
    ends = np.concatenate([[0], np.cumsum(degree)])[bounds]
    return (slice(int(begin), int(end)) for begin, end in zip(ends[:-1], ends[1:], strict=True) if begin < end)


def cuts(degree: np.ndarray, rows: int) -> np.ndarray:
    """Ascending bounds 0 ... len(degree) that divide nodes into runs of about `rows` rows; `degree` [nodes]."""
    ends = np.cumsum(degree)
    total = int(ends[-1]) if len(ends) else 0
    inner = np.searchsorted(ends, np.arange(rows, total, rows)) + 1
    return np.unique(np.concatenate([[0], inner, [len(degree)]]))


def counts(values: np.ndarray, size: int = 0) -> np.ndarray:
    """[size, or more if there are higher values] int64: how often each value occurs."""
    highest = max((int(values[rows].max()) for rows in slices(len(values))), default=-1)
    found = np.zeros(max(size, highest + 1), np.int64)
    for rows in slices(len(values)):
        np.add.at(found, values[rows], 1)
    return found


def mapped(table: np.ndarray, values: np.ndarray, folder: Path | None) -> np.ndarray:
    """A column of `table[values]`."""
    found = column(len(values), table.dtype, folder)
    for rows in slices(len(values)):
        found[rows] = table[values[rows]]
    return found


def joined(columns: Sequence[np.ndarray], folder: Path | None) -> np.ndarray:
    """One column of several, one after another."""
    found, done = column(sum(map(len, columns)), np.result_type(*columns), folder), 0
    for values in columns:
        for rows in slices(len(values)):
            found[done + rows.start : done + rows.stop] = values[rows]
        done += len(values)
    return found


def first(values: np.ndarray, wrong: Callable[[np.ndarray], np.ndarray]) -> int | None:
    """The first row for which `wrong`, of a block of values, is true."""
    for rows in slices(len(values)):
        found = np.flatnonzero(wrong(values[rows]))
        if len(found):
            return rows.start + int(found[0])
    return None


def select(columns: Sequence[np.ndarray], keep: Callable[[slice], np.ndarray], folder: Path | None) -> list[np.ndarray]:
    """Columns of the rows that stay: `keep` gives the mask of a block of them."""
    kept, done = [column(len(columns[0]), values.dtype, folder) for values in columns], 0
    for rows in slices(len(columns[0])):
        mask = keep(rows)
        end = done + int(np.count_nonzero(mask))
        for target, values in zip(kept, columns, strict=True):
            target[done:end] = values[rows][mask]
        done = end
    return [values[:done] for values in kept]


def by_node(node: np.ndarray, other: np.ndarray, out: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """Sorts `other` [E] by `node` [E] into `out` [E], those of a node in their order; `degree` [nodes] of each.

    Returns:
        [nodes + 1] int64: where each node's begin.
    """
    indptr = np.concatenate([[0], np.cumsum(degree)])
    end = indptr[:-1].copy()
    for rows in slices(len(node)):
        order = np.argsort(node[rows], kind="stable")
        own = node[rows][order]
        begin = np.flatnonzero(np.diff(own, prepend=-1))
        length = np.diff(begin, append=len(own))
        out[np.repeat(end[own[begin]] - begin, length) + np.arange(len(own))] = other[rows][order]
        end[own[begin]] += length
    return indptr


class Buckets:
    """Rows of several columns put together by bucket; those of a bucket stay in the order in which they came."""

    def __init__(self, sizes: ArrayLike, dtypes: Sequence[DTypeLike], folder: Path | None) -> None:
        """Makes room: `sizes` [buckets] rows of each, `dtypes` of the columns."""
        self._bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._end = self._bounds[:-1].copy()  # of what each bucket holds by now
        self._columns = [column(int(self._bounds[-1]), dtype, folder) for dtype in dtypes]

    def __len__(self) -> int:
        return len(self._end)

    def add(self, bucket: np.ndarray, *columns: np.ndarray) -> None:
        """Puts a block of rows [n] where they belong."""
        # Sorting 16 bits takes a tenth of the time.
        narrow = bucket.astype(np.int16 if len(self._end) < 2**15 else np.int64)
        order = np.argsort(narrow, kind="stable")
        length = np.bincount(bucket, minlength=len(self._end))
        begin = np.cumsum(length) - length
        moved = [values[order] for values in columns]
        for number in np.flatnonzero(length):
            source = slice(begin[number], begin[number] + length[number])
            target = slice(self._end[number], self._end[number] + length[number])
            for held, values in zip(self._columns, moved, strict=True):
                held[target] = values[source]
        self._end += length

    def rows(self, bucket: int) -> list[np.ndarray]:
        """The columns of one bucket."""
        return [values[self._bounds[bucket] : self._bounds[bucket + 1]] for values in self._columns]
