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
    n = len(own.x)
    sweep = _Sweep(own, t, clamp)
    for begin in range(0, n, ROWS):
        rows = slice(begin, min(begin + ROWS, n))
        sweep.mirrored(rows, own[begin:])
        for others in (columns[:first], columns[first + n :]):
            for at in range(0, len(others.x), COLUMNS):
                sweep.add(rows, others[at : at + COLUMNS])
    return sweep.result()


class _Sweep:
    """Accumulates over blocks. Own sums [n, width + 1] are of [w x, w], so that the last column holds the row sums."""

    def __init__(self, own: Rows, t: float, clamp: tuple[float, float]) -> None:
        self.own, self.t, self.clamp = own, t, clamp
        self.scaled = own.x * (2 * t)
        self.loaded = _loaded(own)
        self.sums = torch.zeros_like(self.loaded.x)
        self.fused_sums = None if own.fused is None else torch.zeros_like(own.fused)

    def mirrored(self, rows: slice, rest: Rows) -> None:
        """Own rows against themselves (both orders at once) and against the own rows after them, for both."""
        size = rows.stop - rows.start
        self.add(rows, rest[:size], diagonal=True)
        for at in range(size, len(rest.x), COLUMNS):
            later = slice(rows.start + at, rows.start + min(at + COLUMNS, len(rest.x)))
            self.add(rows, self.own[later], mirror=later)

    def add(self, rows: slice, columns: Rows, *, diagonal: bool = False, mirror: slice | None = None) -> None:
        """Pairs of own `rows` with `columns`; with `mirror`, where the columns stand among the own rows, for both."""
        pair, inside = self._potential(rows, columns)
        if diagonal:
            pair.fill_diagonal_(0)
        loaded = _loaded(columns) if mirror is None and not diagonal else self.loaded[mirror or rows]
        self.sums[rows].addmm_(pair, loaded.x)
        if mirror is not None:
            self.sums[mirror].addmm_(pair.T, self.loaded.x[rows])
        if self.fused_sums is None:
            return
        if inside is not None:
            pair.mul_(inside)  # a clamped similarity has no gradient
        assert loaded.fused is not None
        self.fused_sums[rows].addmm_(pair, loaded.fused)
        if mirror is not None:
            assert self.loaded.fused is not None
            self.fused_sums[mirror].addmm_(pair.T, self.loaded.fused[rows])

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
