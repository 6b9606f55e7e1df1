"""Lists of different lengths, stored in two flat tensors (CSR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class CsrLists:
    """N lists of integers: list n is values[indptr[n]:indptr[n + 1]]."""

    indptr: Tensor  # [N + 1] int64
    values: Tensor  # [sum of lengths] int64

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @staticmethod
    def from_numpy(indptr: np.ndarray, values: np.ndarray) -> CsrLists:
        """From CSR arrays of any integer dtype."""
        return CsrLists(
            torch.from_numpy(indptr.astype(np.int64)), torch.from_numpy(values.astype(np.int64, copy=False))
        )

    @staticmethod
    def from_pairs(row: np.ndarray, value: np.ndarray, rows: int) -> CsrLists:
        """From (row, value) pairs in any order: `rows` lists, each ascending."""
        order = np.lexsort((value, row))
        indptr = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=rows), out=indptr[1:])
        return CsrLists.from_numpy(indptr, np.asarray(value)[order])

    @property
    def lengths(self) -> Tensor:
        """Lengths of the lists, [N] int64."""
        return self.indptr.diff()

    def row_ids(self) -> Tensor:
        """The list that each value belongs to, [sum of lengths] int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths)

    def rows(self, index: np.ndarray | Tensor) -> CsrLists:
        """The lists at `index` [n], in that order."""
        indptr, place = row_places(self.indptr, torch.as_tensor(index))
        return CsrLists(indptr, self.values[place])


def row_places(indptr: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Selects the rows `index` [n] of a CSR matrix.

    Returns:
        `indptr` [n + 1] of the selection, and the positions of its entries in the matrix; int64.
    """
    lengths = indptr.diff()[index]
    chosen = torch.zeros(len(index) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=chosen[1:])
    start = torch.repeat_interleave(indptr[index] - chosen[:-1], lengths)
    return chosen, start.add_(torch.arange(len(start)))
