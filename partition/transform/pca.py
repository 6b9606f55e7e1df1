"""Reduces feature rows by PCA without subtracting the mean; new items are projected onto the same basis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
from tqdm import tqdm

from partition.columns_on_disk import npy_file
from partition.threads import at_once, each, one_for_blas

BLOCK_BYTES = 1 << 26  # size of one block of rows in float64


def reduce(values: np.ndarray, dim: int, target: Path, threads: int = 1) -> tuple[np.ndarray, float]:
    """Principal components of [n, d] floats without subtracting the mean, accumulated in float64.

    The item graph and the loss compare items by cosine, which the uncentred components preserve best: of the nine
    nearest items by cosine, 64 of 128 dimensions keep 0.81 on TikTok's images (centred: 0.52) and 0.97 on its audio
    (centred: 0.78). A row of zeros (an item without features) stays a row of zeros.

    Args:
        values: [n, d], any float dtype, may be memory-mapped.
        dim: components to keep, less than d.
        target: .npy file for the result; the basis goes into a file beside it.
        threads: blocks handled at the same time; the result is the same for any number.

    Returns:
        [n, dim] float32, memory-mapped, the largest component first, with the largest loading of each positive; and
        the share of the squared norm that is kept.
    """
    rows, width = values.shape
    blocks, gram = list(row_blocks(values)), np.zeros((width, width))

    def product(block: slice) -> np.ndarray:
        part = values[block].astype(np.float64)
        return part.T @ part

    def write(block: slice) -> None:
        reduced[block] = project(values[block], basis)

    threads = at_once(threads, 2 * BLOCK_BYTES + gram.nbytes)
    with one_for_blas():
        for begin in tqdm(range(0, len(blocks), threads), desc="PCA", unit="block", disable=None):
            for found in each(product, blocks[begin : begin + threads], threads):
                gram += found
        energy, basis = scipy.linalg.eigh(gram, subset_by_index=[width - dim, width - 1])
        energy, basis = energy[::-1], basis[:, ::-1]
        basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(dim)])
        np.save(basis_file(target), basis)
        reduced = npy_file(target, np.float32, (rows, dim))
        each(write, blocks, threads)
    total = np.trace(gram)
    return reduced, float(energy.sum() / total) if total else 1.0


def project(values: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Projects rows [n, d] onto the basis [d, dim]: [n, dim] float64."""
    projected: np.ndarray = values.astype(np.float64) @ basis
    return projected


def basis_file(target: Path) -> Path:
    """The file beside the result `target` of `reduce` that holds the basis."""
    return target.with_name(f"{target.stem}-basis.npy")


def row_blocks(values: np.ndarray) -> Iterator[slice]:
    """Yields slices of `BLOCK_BYTES` that cover all rows of a matrix in order."""
    rows = max(1, BLOCK_BYTES // (values.shape[1] * 8))
    return (slice(begin, begin + rows) for begin in range(0, len(values), rows))
