"""Lists of different lengths in two flat tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """N lists of integers: list n is values[indptr[n]:indptr[n + 1]]."""

    indptr: Tensor  # [N + 1] int64
    values: Tensor  # [sum of lengths] int64

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @staticmethod
    def from_numpy(indptr: np.ndarray, values: np.ndarray) -> Ragged:
        """Wraps CSR arrays."""
        return Ragged(torch.from_numpy(indptr.astype(np.int64)), torch.from_numpy(values.astype(np.int64, copy=False)))

    @staticmethod
    def from_pairs(row: np.ndarray, value: np.ndarray, rows: int) -> Ragged:
        """Collects (row, value) pairs, in any order, into `rows` ascending lists."""
        order = np.lexsort((value, row))
        indptr = np.zeros(rows + 1, np.int64)
        np.cumsum(np.bincount(row, minlength=rows), out=indptr[1:])
        return Ragged.from_numpy(indptr, np.asarray(value)[order])

    @property
    def lengths(self) -> Tensor:
        """[N] int64."""
        return self.indptr.diff()

    def row_ids(self) -> Tensor:
        """[sum of lengths] int64: which list every value belongs to."""
        return torch.repeat_interleave(torch.arange(len(self)), self.lengths)

    def rows(self, index: np.ndarray | Tensor) -> Ragged:
        """The lists `index` [n], in that order."""
        indptr, place = row_places(self.indptr, torch.as_tensor(index))
        return Ragged(indptr, self.values[place])


def row_places(indptr: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Some rows of CSR arrays, at `index` [n]: their `indptr` [n + 1], and where their entries lie."""
    lengths = indptr.diff()[index]
    chosen = torch.zeros(len(index) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=chosen[1:])
    start = torch.repeat_interleave(indptr[index] - chosen[:-1], lengths)
    return chosen, start.add_(torch.arange(len(start)))
