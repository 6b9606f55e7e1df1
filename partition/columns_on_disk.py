"""Columns of interactions in memory-mapped files, handled in blocks of rows, so that none has to fit in memory.

The files of columns have no names: they are deleted with the array that maps them, or when the process ends.

Shapes: n rows of a column, E interactions (edges). `folder` is where the files are; None stands for the folder of
temporary files of the system.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

BLOCK = 1 << 20  # rows handled at a time


def column(rows: int, dtype: DTypeLike, folder: Path | None) -> np.ndarray:
    """Returns a new [rows] column of `dtype`.

    Raises:
        OSError: the disk has no room for it.
    """
    length = max(1, rows)  # an empty file cannot be mapped
    with tempfile.TemporaryFile(dir=folder) as file:
        _reserve(file.fileno(), length * np.dtype(dtype).itemsize, Path(folder or tempfile.gettempdir()))
        values: np.ndarray = np.memmap(file, dtype, "r+", shape=(length,))
    return values[:rows]


def npy_file(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """Creates a .npy file of this shape and maps it for writing.

    Raises:
        OSError: the disk has no room for it.
    """
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    with path.open("r+b") as file:
        _reserve(file.fileno(), path.stat().st_size, path)
    return values


def _reserve(descriptor: int, size: int, path: Path) -> None:
    """Allocates `size` bytes: a process that writes to a mapped file when the disk is full is killed by SIGBUS."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def index_type(limit: int) -> type[np.int32 | np.int64]:
    """Returns the narrowest type that holds all indices below `limit`."""
    return np.int32 if limit <= 2**31 else np.int64


def slices(rows: int) -> Iterator[slice]:
    """Yields slices of `BLOCK` rows that cover all rows in order."""
    return (slice(begin, min(begin + BLOCK, rows)) for begin in range(0, rows, BLOCK))


def slices_of_nodes(degree: np.ndarray) -> Iterator[slice]:
    """Yields slices of about `BLOCK` rows of a column sorted by node, none of which divides a node.

    Args:
        degree: [nodes] number of rows per node.
    """
    bounds = cuts(degree, BLOCK)
    ends = np.concatenate([[0], np.cumsum(degree)])[bounds]
    return (slice(int(begin), int(end)) for begin, end in zip(ends[:-1], ends[1:], strict=True) if begin < end)


def cuts(degree: np.ndarray, rows: int) -> np.ndarray:
    """Returns ascending bounds 0 ... nodes that divide the nodes into runs of about `rows` rows.

    Args:
        degree: [nodes] number of rows per node.
        rows: of a run.
    """
    ends = np.cumsum(degree)
    total = int(ends[-1]) if len(ends) else 0
    inner = np.searchsorted(ends, np.arange(rows, total, rows)) + 1
    return np.unique(np.concatenate([[0], inner, [len(degree)]]))


def counts(values: np.ndarray, size: int = 0) -> np.ndarray:
    """Returns how often each value occurs: [size] int64, longer if there are values of `size` and above."""
    highest = max((int(values[rows].max()) for rows in slices(len(values))), default=-1)
    found = np.zeros(max(size, highest + 1), np.int64)
    for rows in slices(len(values)):
        np.add.at(found, values[rows], 1)
    return found


def distinct(values: np.ndarray) -> np.ndarray:
    """Returns the distinct values of [n] integers, ascending; `np.unique`, by a hash table, takes 40 times the time."""
    ordered = np.sort(values)
    is_first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    return ordered[is_first]


def positions(values: np.ndarray, ascending: np.ndarray, end: int) -> np.ndarray:
    """Returns where in `ascending` the values are.

    Args:
        values: [n] integers, all of them in `ascending`.
        ascending: [m] distinct integers of at least 0.
        end: one more than the largest that there may be.
    """
    if end > 8 * len(values):
        return np.searchsorted(ascending, values)
    # A table takes a tenth of the time of a search.
    place = np.empty(end, index_type(len(ascending)))
    place[ascending] = np.arange(len(ascending))
    return place[values]


def select(columns: Sequence[np.ndarray], keep: Callable[[slice], np.ndarray], folder: Path | None) -> list[np.ndarray]:
    """Returns the columns of the rows to keep.

    Args:
        columns: [n] each.
        keep: returns the mask of the rows in a slice.
        folder: for the new columns.
    """
    kept, done = [column(len(columns[0]), values.dtype, folder) for values in columns], 0
    for rows in slices(len(columns[0])):
        mask = keep(rows)
        end = done + int(np.count_nonzero(mask))
        for target, values in zip(kept, columns, strict=True):
            target[done:end] = values[rows][mask]
        done = end
    return [values[:done] for values in kept]


def by_node(node: np.ndarray, other: np.ndarray, out: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """Sorts by node; rows of one node stay in their order.

    Args:
        node: [E] node of each row.
        other: [E] values to sort.
        out: [E] where the sorted values are written.
        degree: [nodes] number of rows per node.

    Returns:
        [nodes + 1] int64: where the rows of each node begin in `out`.
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
    """Groups the rows of several columns by bucket; rows of one bucket stay in the order in which they were added.

    Args:
        sizes: [buckets] number of rows per bucket.
        dtypes: of the columns.
        folder: for the files.
    """

    def __init__(self, sizes: ArrayLike, dtypes: Sequence[DTypeLike], folder: Path | None) -> None:
        self._bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._end = self._bounds[:-1].copy()  # of the rows added so far, per bucket
        self._columns = [column(int(self._bounds[-1]), dtype, folder) for dtype in dtypes]

    def __len__(self) -> int:
        return len(self._end)

    @property
    def sizes(self) -> list[int]:
        """[buckets] number of rows per bucket."""
        sizes: list[int] = np.diff(self._bounds).tolist()
        return sizes

    def add(self, bucket: np.ndarray, *columns: np.ndarray) -> None:
        """Adds a block of rows: `bucket` [n], `columns` [n] each."""
        # Sorting 16-bit numbers takes a tenth of the time.
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
        """Returns the columns of one bucket."""
        return [values[self._bounds[bucket] : self._bounds[bucket + 1]] for values in self._columns]
