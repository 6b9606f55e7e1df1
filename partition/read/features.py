"""Feature matrices: read, restricted to the kept items, missing rows filled as chosen, reduced by PCA.

Rows are handled in blocks. Features that are not in a NumPy file are written to one in a working folder, so no matrix
has to fit in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from partition.columns_on_disk import npy_file
from partition.errors import InputError
from partition.options import Missing
from partition.read.feature_rows import Matrix, read_lists, read_matrix
from partition.read.feature_sources import MatrixFile, Source
from partition.transform.dataset import Features
from partition.transform.pca import basis_file, reduce, row_blocks


class Matrices:
    """The matrices of all modalities; each is read when it is first needed.

    Args:
        sources: modality -> source of its rows, in the order of the control points.
        items: size of the catalogue.
        work: folder for intermediate matrices, needed as long as the results are used.
    """

    def __init__(self, sources: Mapping[str, Source], items: int, work: Path) -> None:
        self.names, self.work = list(sources), work
        self._sources, self._items = sources, items
        self._read: dict[str, Matrix] = {}

    def __getitem__(self, name: str) -> Matrix:
        """The matrix of a modality.

        Raises:
            InputError: a value that is not finite, or lists of unequal length.
        """
        if name not in self._read:
            source = self._sources[name]
            target = self.work / f"features-{name}.npy"
            if isinstance(source, MatrixFile):
                self._read[name] = read_matrix(source, self.work, target)
            else:
                self._read[name] = read_lists(source, self._items, target)
        return self._read[name]


def missing_items(matrices: Matrices, choices: Mapping[str, Missing]) -> np.ndarray | None:
    """[items] bool: the items to leave out, because a modality with the choice `drop` has no features of them.

    Returns:
        None if there are none. Only modalities with that choice are read.
    """
    masks = [matrices[name].missing for name, choice in choices.items() if choice == Missing.DROP]
    found = [mask for mask in masks if mask is not None]
    return np.logical_or.reduce(found) if found else None


def load(
    matrices: Matrices,
    kept: np.ndarray | None,
    choices: Mapping[str, Missing],
    pca: Mapping[str, int],
    ids: pa.Array,
    threads: int = 1,
) -> tuple[dict[str, Features], dict[str, float], dict[str, int]]:
    """Makes the features of the items that stay.

    Args:
        matrices: of the whole catalogue.
        kept: [n] indices of the items that stay, ascending; None for all.
        choices: modality -> what becomes of missing rows; those to drop are not among `kept`.
        pca: modality -> number of dimensions to keep; "*" for the others that are wider.
        ids: [items] external ids, for messages.
        threads: of PCA.

    Returns:
        The features in the order of the matrices; for each reduced modality the share of the squared norm that PCA
        kept; and for each modality with missing rows their number.

    Raises:
        InputError: `features.missing`, rows are missing and the choice is to refuse them, or all are; `option.pca`, a
            modality is narrower than `pca` says; or as `Matrices`.
    """
    features, shares, counts = {}, {}, {}
    for name in matrices.names:
        found = matrices[name]
        values, missing = found.values, found.missing
        if kept is not None:
            values = _select(values, kept, matrices.work / f"{name}-kept.npy")
            missing = None if missing is None else missing[kept]
        count = 0 if missing is None else int(missing.sum())
        mask = None
        if missing is not None and count:
            counts[f"missing_{name}"] = count
            if choices[name] == Missing.REFUSE:
                first = int(np.argmax(missing))
                raise _refused(name, count, len(missing), found, first if kept is None else int(kept[first]), ids)
            if choices[name] == Missing.MEAN:
                _fill_with_mean(values, missing)
            mask = missing if choices[name] == Missing.MASK else None
        width = values.shape[1]
        dim = pca.get(name, min(width, pca.get("*", width)))
        if dim > width:
            raise InputError(f"--pca {name}={dim}: modality {name!r} has {width} dimensions only", "option.pca")
        basis = None
        if dim < width:
            target = matrices.work / f"{name}-pca.npy"
            values, shares[f"pca_kept_{name}"] = reduce(values, dim, target, threads)
            basis = np.load(basis_file(target), mmap_mode="r", allow_pickle=False)
        features[name] = Features(values, width, basis, mask)
    return features, shares, counts


def _refused(name: str, count: int, items: int, found: Matrix, first: int, ids: pa.Array) -> InputError:
    place = found.place(first) or f"item {ids[first].as_py()!r}, which has no row"
    have = "has" if count == 1 else "have"
    message = f"{count:,} of {items:,} items {have} no {name}; first: {place}"
    return InputError(f"{message}; choose with --missing {name}=zeros|mean|drop|mask", "features.missing")


def _fill_with_mean(values: np.ndarray, missing: np.ndarray) -> None:
    """Writes the mean of the other rows into the missing ones."""
    total = np.zeros(values.shape[1])
    for block in row_blocks(values):
        total += values[block].sum(axis=0, dtype=np.float64)  # missing rows are zeros
    mean = total / max(len(missing) - np.count_nonzero(missing), 1)
    for block in row_blocks(values):
        values[block][missing[block]] = mean


def _select(values: np.ndarray, kept: np.ndarray, target: Path) -> np.ndarray:
    selected = npy_file(target, values.dtype, (len(kept), values.shape[1]))
    for block in row_blocks(selected):
        selected[block] = values[kept[block]]
    return selected
