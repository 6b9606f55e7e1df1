"""Weighted sums of the calibrated potential over pairs of rows, with their gradients, in one pass (docs/model.md).

Each pair costs two multiply-adds per feature and one exponential. Weights are never applied to the pair matrix: they
scale the rows on both sides, and the row sums are one extra column of the second product. Pairs among this rank's own
rows are computed once, for i < j, and added to both rows. The full pair matrix is never stored, only blocks of
ROWS x COLUMNS pairs.

Shapes: n own rows and N columns (all rows of the batch, or of a part) of width C * d; fused rows have width d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

ROWS, COLUMNS = 512, 2048  # pairs per block: 4 MiB in float32, which fits a core's share of the cache


class BlockKind(Enum):
    """Where the columns of a block of pairs come from."""

    DIAGONAL = "diagonal"  # the block's own rows: (i, i) is left out
    OWN_UPPER = "own_upper"  # own rows after the block's: each pair is added to both of its rows
    REMOTE = "remote"  # rows of other ranks


@dataclass(frozen=True)
class Rows:
    """Rows of a uniformity term: `x` [n, C * d] and `fused` [n, d] of norm 1, `weight` [n].

    `fused` is None in plain uniformity.
    """

    x: Tensor
    fused: Tensor | None
    weight: Tensor

    def __getitem__(self, part: slice) -> Rows:
        """The rows in the slice."""
        return Rows(self.x[part], None if self.fused is None else self.fused[part], self.weight[part])


@dataclass(frozen=True)
class PairSum:
    """`total`: the sum of w_i w_j e_ij over own rows i and columns j != i; `x`, `fused`: gradients of half of it.

    Half, because the sum over all ranks counts every unordered pair twice. d(half)/dx_i = w_i sum_j w_j e_ij 2t x_j is
    then the complete gradient of row i, so no gradient has to be sent to another rank.
    """

    total: Tensor  # [] float64
    x: Tensor  # [n, C * d]
    fused: Tensor | None  # [n, d]


def pair_sum(own: Rows, columns: Rows, first: int, t: float, clamp: tuple[float, float]) -> PairSum:
    """Sums e_ij = exp(2t (x_i . x_j - phi_ij)), phi_ij = clamp(fused_i . fused_j), or 1 without fused rows.

    Args:
        own: n rows.
        columns: N >= n rows; rows [first, first + n) of them are `own`.
        first: position of the first own row in `columns`.
        t: temperature, at most 10: exponents then stay within +-40 and need no shift.
        clamp: lower and upper bound of phi.
    """
    n, end = len(own.x), first + len(own.x)
    sweep = _Sweep(own, columns, first, t, clamp)
    for begin in range(0, n, ROWS):
        rows = slice(begin, min(begin + ROWS, n))
        sweep.add(rows, slice(first + rows.start, first + rows.stop), BlockKind.DIAGONAL)
        for at, stop, kind in (
            (first + rows.stop, end, BlockKind.OWN_UPPER),
            (0, first, BlockKind.REMOTE),
            (end, len(columns.x), BlockKind.REMOTE),
        ):
            for low in range(at, stop, COLUMNS):
                sweep.add(rows, slice(low, min(low + COLUMNS, stop)), kind)
    return sweep.result()


class _Sweep:
    """Accumulates over blocks of pairs.

    `sums` [n, C * d + 1] accumulates products with [w x, w], so its last column holds the row sums.
    """

    def __init__(self, own: Rows, columns: Rows, first: int, t: float, clamp: tuple[float, float]) -> None:
        self.own, self.columns, self.first, self.t, self.clamp = own, columns, first, t, clamp
        self.scaled = own.x * (2 * t)
        self.loaded = _loaded(columns)
        self.sums = self.loaded.x.new_zeros(len(own.x), self.loaded.x.shape[1])
        self.fused_sums = None if own.fused is None else torch.zeros_like(own.fused)

    def add(self, rows: slice, at: slice, kind: BlockKind) -> None:
        """Adds the pairs of own `rows` with the columns `at`."""
        pair, inside = self._potential(rows, self.columns[at])
        if kind is BlockKind.DIAGONAL:
            pair.fill_diagonal_(0)
        loaded = self.loaded
        self._put(self.sums, loaded.x, pair, rows, at, kind)
        if self.fused_sums is None:
            return
        if inside is not None:
            pair.mul_(inside)  # a clamped phi has no gradient
        assert loaded.fused is not None
        self._put(self.fused_sums, loaded.fused, pair, rows, at, kind)

    def _put(self, sums: Tensor, loaded: Tensor, pair: Tensor, rows: slice, at: slice, kind: BlockKind) -> None:
        sums[rows].addmm_(pair, loaded[at])
        if kind is BlockKind.OWN_UPPER:
            first = self.first
            sums[at.start - first : at.stop - first].addmm_(pair.T, loaded[rows.start + first : rows.stop + first])

    def _potential(self, rows: slice, columns: Rows) -> tuple[Tensor, Tensor | None]:
        """e_ij [rows, columns], and where phi lies within its bounds, bool; None: everywhere.

        Plain uniformity leaves its constant factor exp(-2t) to `result`.
        """
        scaled = self.scaled[rows]
        if self.own.fused is None:
            return torch.mm(scaled, columns.x.T).exp_(), None
        assert columns.fused is not None
        phi = torch.mm(self.own.fused[rows], columns.fused.T)
        low, high = self.clamp
        inside = phi >= low if low > -1 else None  # a cosine cannot exceed bounds of -1 and 1
        if high < 1:
            inside = phi <= high if inside is None else inside.logical_and_(phi <= high)
        return phi.clamp_(low, high).addmm_(scaled, columns.x.T, beta=-2 * self.t).exp_(), inside

    def result(self) -> PairSum:
        factor = math.exp(-2 * self.t) if self.own.fused is None else 1.0
        weight = self.own.weight.unsqueeze(1)
        total = torch.dot(self.own.weight.double(), self.sums[:, -1].double()) * factor
        grad = self.sums[:, :-1] * (weight * (2 * self.t * factor))
        return PairSum(total, grad, None if self.fused_sums is None else self.fused_sums * (weight * (-2 * self.t)))


def _loaded(rows: Rows) -> Rows:
    """[w x, w] and w fused, the factors that the pair matrix is multiplied with."""
    weight = rows.weight.unsqueeze(1)
    return Rows(
        torch.cat([rows.x * weight, weight], dim=1), None if rows.fused is None else rows.fused * weight, rows.weight
    )
