"""Feature matrices from NumPy files or list columns: checked, restricted to the kept items, reduced by PCA.

Rows are handled in blocks. Features that are not in a NumPy file are written to one in a working folder, so no matrix
has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.linalg
from tqdm import tqdm

from partition.columns_on_disk import npy_file
from partition.errors import InputError, reading, require
from partition.read.table_file import TableFile, first_null
from partition.transform.dataset import Features

BLOCK_BYTES = 1 << 26  # size of one block of rows
LIST_BATCH = 8192  # rows of list columns per batch
_DTYPES = {"halffloat": np.float16, "float": np.float32, "double": np.float64}


@dataclass(frozen=True)
class NpyFile:
    """A matrix whose row number is the item index."""

    path: Path

    @cached_property
    def values(self) -> np.ndarray:
        """[items, d], memory-mapped.

        Raises:
            InputError: missing, torn, pickled, not two-dimensional, not of a float dtype, or without columns.
        """
        with reading(self.path, ".npy"):
            values = np.load(self.path, mmap_mode="r", allow_pickle=False)
        message = f"has shape {values.shape}; expected (items, width)"
        require(values.ndim == 2 and values.shape[1] > 0, self.path, message, "features.shape")
        message = f"has dtype {values.dtype}; expected float16, float32 or float64"
        require(values.dtype in _DTYPES.values(), self.path, message, "features.dtype")
        return values

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.values)

    @property
    def paths(self) -> list[Path]:
        """The file, in a list."""
        return [self.path]


@dataclass(frozen=True)
class ListColumn:
    """A column of lists of floats, one list per item."""

    tables: tuple[TableFile, ...]
    column: str
    position: np.ndarray  # [rows over all tables] int64 item index of every row

    @property
    def paths(self) -> list[Path]:
        """Files of the tables."""
        return [table.path for table in self.tables]


Source = NpyFile | ListColumn


def is_feature_column(table: TableFile, column: str) -> bool:
    """True for a list column of floats, of fixed size or not."""
    if table.schema is None or column not in table.names:
        return False
    kind = table.schema.field(column).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and str(kind.value_type) in _DTYPES


def load(
    sources: Mapping[str, Source], items: int, kept: np.ndarray | None, pca: Mapping[str, int], work: Path
) -> tuple[dict[str, Features], dict[str, float]]:
    """Reads all modalities.

    Args:
        sources: modality -> source of its rows, in the order of the control points.
        items: size of the catalogue.
        kept: [n] indices of the items that stay, ascending; None for all.
        pca: modality -> number of dimensions to keep; "*" for the others that are wider.
        work: folder for intermediate matrices, needed as long as the result is used.

    Returns:
        The features in the same order; and for each reduced modality the share of the squared norm that PCA kept.

    Raises:
        InputError: a NaN or infinite value, lists of unequal length, a missing list, or a modality that is narrower
            than `pca` says.
    """
    features, shares = {}, {}
    for name, source in sources.items():
        if isinstance(source, NpyFile):
            values = source.values
            _check_finite(values, source.path)
        else:
            values = _gather(source, items, work / f"{name}.npy")
        width = values.shape[1]
        if kept is not None:
            values = _select(values, kept, work / f"{name}-kept.npy")
        dim = pca.get(name, min(width, pca.get("*", width)))
        if dim > width:
            raise InputError(f"--pca {name}={dim}: modality {name!r} has {width} dimensions only", "option.pca")
        if dim < width:
            target = work / f"{name}-pca.npy"
            values, shares[f"pca_kept_{name}"] = reduce(values, dim, target)
            features[name] = Features(values, width, np.load(_basis_of(target), mmap_mode="r", allow_pickle=False))
        else:
            features[name] = Features(values, width)
    return features, shares


def reduce(values: np.ndarray, dim: int, target: Path) -> tuple[np.ndarray, float]:
    """Principal components of [n, d] floats without subtracting the mean, accumulated in float64.

    The item graph and the loss compare items by cosine, which the uncentred components preserve best: of the nine
    nearest items by cosine, 64 of 128 dimensions keep 0.81 on TikTok's images (centred: 0.52) and 0.97 on its audio
    (centred: 0.78). A row of zeros (an item without features) stays a row of zeros.

    Args:
        values: [n, d], any float dtype, may be memory-mapped.
        dim: components to keep, less than d.
        target: .npy file for the result; the basis goes into a file beside it.

    Returns:
        [n, dim] float32, memory-mapped, the largest component first, with the largest loading of each positive; and
        the share of the squared norm that is kept.
    """
    rows, width = values.shape
    gram = np.zeros((width, width))
    for block in tqdm(list(_blocks(values)), desc="PCA", unit="block", disable=None):
        part = values[block].astype(np.float64)
        gram += part.T @ part
    energy, basis = scipy.linalg.eigh(gram, subset_by_index=[width - dim, width - 1])
    energy, basis = energy[::-1], basis[:, ::-1]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(dim)])
    np.save(_basis_of(target), basis)
    reduced = npy_file(target, np.float32, (rows, dim))
    for block in _blocks(values):
        reduced[block] = project(values[block], basis)
    total = np.trace(gram)
    return reduced, float(energy.sum() / total) if total else 1.0


def project(values: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Projects rows [n, d] onto the basis [d, dim]: [n, dim] float64."""
    projected: np.ndarray = values.astype(np.float64) @ basis
    return projected


def _basis_of(target: Path) -> Path:
    return target.with_name(f"{target.stem}-basis.npy")


def _blocks(values: np.ndarray) -> Iterator[slice]:
    rows = max(1, BLOCK_BYTES // (values.shape[1] * 8))
    return (slice(begin, begin + rows) for begin in range(0, len(values), rows))


def _check_finite(values: np.ndarray, path: Path) -> None:
    for block in _blocks(values):
        wrong = np.argwhere(~np.isfinite(values[block]))
        if len(wrong):
            row, column = wrong[0] + (block.start, 0)
            message = f"{path}: row {row}, column {column}: the value is {values[row, column]}, not a number to use"
            raise InputError(message, "features.value")


def _select(values: np.ndarray, kept: np.ndarray, target: Path) -> np.ndarray:
    selected = npy_file(target, values.dtype, (len(kept), values.shape[1]))
    for block in _blocks(selected):
        selected[block] = values[kept[block]]
    return selected


def _gather(source: ListColumn, items: int, target: Path) -> np.ndarray:
    """The lists as a matrix in item order."""
    matrix, done = None, 0
    for table in source.tables:
        row = 0
        for batch in table.batches([source.column], LIST_BATCH):
            lists = batch.column(0)
            rows = _rows(lists, table, source.column, row, None if matrix is None else matrix.shape[1])
            if matrix is None:
                matrix = npy_file(target, rows.dtype, (items, rows.shape[1]))
            elif matrix.dtype != rows.dtype:
                message = f"is {rows.dtype} here and {matrix.dtype} in another file"
                raise table.error(message, source.column, code="features.dtype")
            matrix[source.position[done : done + len(rows)]] = rows
            row, done = row + len(rows), done + len(rows)
    if matrix is None:
        raise source.tables[0].error("has no rows", source.column, code="table.empty")
    return matrix


def _rows(lists: pa.Array, table: TableFile, column: str, first: int, width: int | None) -> np.ndarray:
    """[rows, width] values of a batch of lists that begins with row `first` of the file."""
    if lists.null_count:
        message = "the features are missing; an item without any can have a list of zeros"
        raise table.error(message, column, first + first_null(lists), code="features.missing")
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    width = int(lengths[0]) if width is None else width
    odd = np.flatnonzero(lengths != width)
    if len(odd) or not width:
        row = int(odd[0]) if len(odd) else 0
        message = f"a list of {lengths[row]} values; the first has {width}"
        raise table.error(message, column, first + row, code="features.shape")
    flat = lists.flatten()
    values: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if flat.null_count or len(wrong):
        row = first + int(wrong[0])
        raise table.error("a value is NaN, infinite or missing", column, row, code="features.value")
    return values
