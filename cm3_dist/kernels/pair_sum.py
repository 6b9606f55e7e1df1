"""Weighted sums of the calibrated potential over pairs of rows, with their gradients, in one sweep (CM3.md section 3).

Two matrix products and one exponential a pair. Weights never touch the pair matrix: they scale rows on both sides, and
the row sums ride along as one more column of the second product. Pairs among the own rows are taken once, i < j, and
serve both rows. No B x B matrix exists: blocks of ROWS x COLUMNS pairs do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS, COLUMNS = 512, 2048  # pairs at a time: 4 MiB in float32, which a core's share of the cache holds


@dataclass(frozen=True)
class Rows:
    """Rows that repel each other: `x` [n, width] and `fused` [n, d] of norm 1 (None: plain), `weight` [n]."""

    x: Tensor
    fused: Tensor | None
    weight: Tensor

    def __getitem__(self, part: slice) -> Rows:
        """Some of them."""
        return Rows(self.x[part], None if self.fused is None else self.fused[part], self.weight[part])


@dataclass(frozen=True)
class PairSum:
    """`total`: sum over own rows i and columns j != i of w_i w_j e_ij, float64; gradients of half of it.

    Half, because in the sum over all ranks every unordered pair appears twice: d(half)/dx_i = w_i sum_j w_j e_ij 2t x_j
    is then the whole gradient of row i, and nothing need be sent back to it.
    """

    total: Tensor
    x: Tensor  # [n, width]
    fused: Tensor | None  # [n, d]


def pair_sum(own: Rows, columns: Rows, first: int, t: float, clamp: tuple[float, float]) -> PairSum:
    """Sums e_ij = exp(2t (x_i . x_j - phi_ij)), phi_ij = clamp(fused_i . fused_j), or 1 without fused rows.

    Args:
        own: n rows.
        columns: N >= n rows, of which [first, first + n) are the own ones.
        first: see above.
        t: temperature, at most 10: exponents then stay within +-40 and need no shift.
        clamp: bounds of phi.
    """
    n, end = len(own.x), first + len(own.x)
    sweep = _Sweep(own, columns, first, t, clamp)
    for begin in range(0, n, ROWS):
        rows = slice(begin, min(begin + ROWS, n))
        sweep.add(rows, slice(first + rows.start, first + rows.stop), own="these")
        for at, stop, kind in ((first + rows.stop, end, "later"), (0, first, None), (end, len(columns.x), None)):
            for low in range(at, stop, COLUMNS):
                sweep.add(rows, slice(low, min(low + COLUMNS, stop)), own=kind)
    return sweep.result()


class _Sweep:
    """Accumulates over blocks. Own sums [n, width + 1] are of [w x, w], so that the last column holds the row sums."""

    def __init__(self, own: Rows, columns: Rows, first: int, t: float, clamp: tuple[float, float]) -> None:
        self.own, self.columns, self.first, self.t, self.clamp = own, columns, first, t, clamp
        self.scaled = own.x * (2 * t)
        self.loaded = _loaded(columns)
        self.sums = self.loaded.x.new_zeros(len(own.x), self.loaded.x.shape[1])
        self.fused_sums = None if own.fused is None else torch.zeros_like(own.fused)

    def add(self, rows: slice, at: slice, own: str | None) -> None:
        """Pairs of own `rows` with the columns `at`.

        `own`: None: rows of others; "these": the own rows themselves; "later": own rows after them, for which the pairs
        count too.
        """
        pair, inside = self._potential(rows, self.columns[at])
        if own == "these":
            pair.fill_diagonal_(0)
        loaded = self.loaded
        self._put(self.sums, loaded.x, pair, rows, at, own)
        if self.fused_sums is None:
            return
        if inside is not None:
            pair.mul_(inside)  # a clamped similarity has no gradient
        assert loaded.fused is not None
        self._put(self.fused_sums, loaded.fused, pair, rows, at, own)

    def _put(self, sums: Tensor, loaded: Tensor, pair: Tensor, rows: slice, at: slice, own: str | None) -> None:
        sums[rows].addmm_(pair, loaded[at])
        if own == "later":
            first = self.first
            sums[at.start - first : at.stop - first].addmm_(pair.T, loaded[rows.start + first : rows.stop + first])

    def _potential(self, rows: slice, columns: Rows) -> tuple[Tensor, Tensor | None]:
        """e_ij without plain uniformity's constant factor, and where phi is inside its bounds (None: everywhere)."""
        scaled = self.scaled[rows]
        if self.own.fused is None:
            return torch.mm(scaled, columns.x.T).exp_(), None
        assert columns.fused is not None
        phi = torch.mm(self.own.fused[rows], columns.fused.T)
        low, high = self.clamp
        inside = phi >= low if low > -1 else None  # cosines: bounds of -1 and 1 are none
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
    """[w x, w] and w fused: what the pair matrix is multiplied with."""
    weight = rows.weight.unsqueeze(1)
    return Rows(
        torch.cat([rows.x * weight, weight], dim=1), None if rows.fused is None else rows.fused * weight, rows.weight
    )
