"""Everything a step needs to know before it computes: its batch, its operator, and who sends which rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3_dist.graph.halo_exchange import Exchange
from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.pipeline.packing import Packed


@dataclass(frozen=True)
class Inputs:
    """Which ego rows enter the propagation."""

    propagation: Propagation
    users: Tensor  # [n] int64 global rows
    mixed: Tensor  # [b] int64 global rows: the batch's distinct users, whose mixing logits are looked up
    items: Tensor  # [m] int64 global rows
    features: dict[str, Tensor]  # modality -> [m, dim]
    curve: Tensor  # [m] float32: the curve parameter of every item
    whole: bool  # `users` and `items` are all rows of this rank, in order


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


@dataclass(frozen=True)
class StepPlan:
    """One step of one rank."""

    epoch: int
    step: int  # within the epoch
    size: int  # positives over all ranks
    inputs: Inputs
    users: Tensor | None  # [n] int64: places of the batch's distinct users in the propagated rows; None: these are they
    items: Tensor | None  # [m] int64: likewise of the items that any rank's batch asked for
    positive_user: Tensor  # [b] int64: place of every positive's user in `users`
    positive_item: Tensor  # [b] int64: place of every positive in [`items`; fetched items]
    positive_weight: Tensor  # [b] float32: 1 / size; 0 where a padded plan has no positive
    gamma_share: Tensor  # [] float32: of gamma, 1 after its warm-up
    exchange: Exchange  # fetches the positives that other ranks own
    user_pairs: Pairs
    item_pairs: Pairs
    item_inputs: Tensor  # [n of item_pairs] int64: position of those items among the ego items
    input_share: float  # nodes that enter the propagation, over all nodes (all ranks)
    packed: Packed | None = None  # where the tensors of a padded plan lie
