"""Weights of the pairs of rows in a uniformity term, on this rank and over all ranks."""

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
    """Total weight of the pairs among some rows: w_i w_j for rows i < j, and v_i for the copies of row i."""

    rows: float  # sum of w
    pairs: float  # sum of w_i w_j over i < j plus sum of v; 0: there is no pair, and the term is 0
    copies: float  # sum of v

    @staticmethod
    def of(rows: float, squares: float, copies: float) -> PairWeight:
        """From the sums of w, w^2 and v."""
        return PairWeight(rows, (rows**2 - squares) / 2 + copies, copies)

    @property
    def log_pairs(self) -> float:
        """Log of `pairs`; 0 if there is no pair."""
        return math.log(self.pairs) if self.pairs > 0 else 0.0

    def scalars(self) -> Tensor:
        """[2] float64: `copies` and `log_pairs`."""
        return torch.tensor([self.copies, self.log_pairs], dtype=torch.float64)


@dataclass(frozen=True)
class Pairs:
    """This rank's rows of a uniformity term, distinct, with their weights."""

    index: Tensor  # [n] int64: indices among the batch's users or items
    weight: Tensor  # [n] float32
    cuts: list[int]  # [own parts + 1]: rows of one part are index[cuts[k]:cuts[k + 1]]
    parts: list[PairWeight]  # [own parts]: of the pairs within each part
    everywhere: PairWeight  # of the pairs over all ranks
    scalars: Tensor  # [2] float64: `everywhere.copies` and `everywhere.log_pairs`, copied to the device
    within: float  # sum of `rows` over all parts of all ranks that have a pair
    most: int  # largest n of any rank


def weigh_pairs(
    index: np.ndarray,
    part: np.ndarray,
    weight: np.ndarray,
    copies: np.ndarray,
    *,
    own_parts: int,
    runtime: Runtime,
) -> Pairs:
    """Sums the weights of the rows of a uniformity term over the ranks. Collective, on the planning group.

    Args:
        index: [n] int64 indices of the rows among the batch's users or items.
        part: [n] int64 part of each row, counted from this rank's first, ascending.
        weight: [n] w.
        copies: [n] v.
        own_parts: parts of this rank.
        runtime: the ranks.
    """
    cuts = np.searchsorted(part, np.arange(own_parts + 1))
    sums = [_sums(weight[begin:end], copies[begin:end]) for begin, end in zip(cuts, cuts[1:], strict=False)]
    within = [PairWeight.of(*each) for each in sums]
    # Sums of w, w^2 and v; weight of the rows in parts that have a pair; number of rows per rank.
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
    """Number of pairs among `count` draws of one row."""
    return count * (count - 1) / 2


def sum_while_planning(values: Tensor, runtime: Runtime) -> None:
    """Sums over the ranks, in place, on the planning group."""
    traffic.add("planning sums", summed(values.nbytes, runtime.world_size))
    dist.all_reduce(values, group=runtime.planning)


def _sums(weight: np.ndarray, copies: np.ndarray) -> tuple[float, float, float]:
    """Sums of w, w^2 and v."""
    weight = weight.astype(np.float64)
    return float(weight.sum()), float(np.dot(weight, weight)), float(copies.sum())
