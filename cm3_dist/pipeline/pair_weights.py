"""What pairs of rows weigh in a uniformity term, on this rank and over all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.traffic import summed, traffic


@dataclass(frozen=True)
class PairWeight:
    """What the pairs of some rows weigh: rows i, j count w_i w_j for i < j, and copies of one row count v_i."""

    rows: float  # sum of w
    pairs: float  # sum of w_i w_j over i < j, and of v; 0: no pair, no term
    copies: float  # sum of v

    @staticmethod
    def of(rows: float, squares: float, copies: float) -> PairWeight:
        """From the sums of w, w^2 and v."""
        return PairWeight(rows, (rows**2 - squares) / 2 + copies, copies)

    @property
    def log_pairs(self) -> float:
        """Log of the pairs' weight; 0 without any."""
        return math.log(self.pairs) if self.pairs > 0 else 0.0

    def scalars(self) -> Tensor:
        """[2] float64: `copies` and `log_pairs`."""
        return torch.tensor([self.copies, self.log_pairs], dtype=torch.float64)


@dataclass(frozen=True)
class Pairs:
    """Rows between which a uniformity term runs: this rank's share, distinct, with multiplicities as weights."""

    index: Tensor  # [n] int64: where the rows stand among the batch's
    weight: Tensor  # [n] float32
    cuts: list[int]  # [own parts + 1]: rows of one part are index[cuts[k]:cuts[k + 1]]
    parts: list[PairWeight]  # [own parts]: of the pairs within one
    everywhere: PairWeight  # of the pairs over all ranks
    scalars: Tensor  # [2] float64: `everywhere.copies` and the log of `everywhere.pairs`, for the device
    within: float  # sum of `rows` over those parts of all ranks that have a pair
    most: int  # largest n over the ranks


def weigh_pairs(
    index: np.ndarray,
    part: np.ndarray,
    weight: np.ndarray,
    copies: np.ndarray,
    *,
    own_parts: int,
    runtime: Runtime,
) -> Pairs:
    """Sums the weights of the rows that repel each other. Collective, on the planning group.

    Args:
        index: [n] int64 where the rows stand among the batch's.
        part: [n] int64 part of each row, counted from this rank's first, ascending.
        weight: [n] w.
        copies: [n] v.
        own_parts: parts of this rank.
        runtime: the ranks.
    """
    cuts = np.searchsorted(part, np.arange(own_parts + 1))
    sums = [_sums(weight[begin:end], copies[begin:end]) for begin, end in zip(cuts, cuts[1:], strict=False)]
    within = [PairWeight.of(*each) for each in sums]
    # Sums of w, w^2 and v; rows of parts that have a pair; number of rows per rank.
    shared = torch.zeros(4 + runtime.world_size, dtype=torch.float64)
    shared[:3] = torch.tensor(sums, dtype=torch.float64).sum(0)
    shared[3] = sum(each.rows for each in within if each.pairs > 0)
    shared[4 + runtime.rank] = len(index)
    if runtime.world_size > 1:
        sum_while_planning(shared, runtime)
    rows, squares, all_copies, rows_within, *lengths = shared.tolist()
    everywhere = PairWeight.of(rows, squares, all_copies)
    return Pairs(
        index=torch.from_numpy(index),
        weight=torch.from_numpy(weight.astype(np.float32)),
        cuts=cuts.tolist(),
        parts=within,
        everywhere=everywhere,
        scalars=everywhere.scalars(),
        within=rows_within,
        most=int(max(lengths)),
    )


def copies_of_one_row(count: np.ndarray) -> np.ndarray:
    """Number of pairs that `count` draws of one row form with each other."""
    return count * (count - 1) / 2


def sum_while_planning(values: Tensor, runtime: Runtime) -> None:
    """Sums over the ranks, in place, on the planning group."""
    traffic.add("planning sums", summed(values.nbytes, runtime.world_size))
    dist.all_reduce(values, group=runtime.planning)


def _sums(weight: np.ndarray, copies: np.ndarray) -> tuple[float, float, float]:
    """Sums of w, w^2 and v."""
    weight = weight.astype(np.float64)
    return float(weight.sum()), float(np.dot(weight, weight)), float(copies.sum())
