"""Everything a step needs to know before it computes: its batch, its operator, and who sends which rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cm3_dist.graph.halo_exchange import Exchange
from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.pipeline.device_transfer import Packed
from cm3_dist.pipeline.pair_weights import Pairs


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
class StepPlan:
    """One step of one rank."""

    epoch: int
    step: int  # within the epoch
    size: int  # positives over all ranks
    inputs: Inputs
    users: Tensor | None  # [n] int64: indices of the batch's unique users in the propagated rows; None if
    # the rows are exactly those users, in order
    items: Tensor | None  # [m] int64: likewise of the items that any rank's batch asked for
    positive_user: Tensor  # [b] int64: place of every positive's user in `users`
    positive_item: Tensor  # [b] int64: place of every positive in [`items`; fetched items]
    positive_weight: Tensor  # [b] float32: 1 / size; 0 where a padded plan has no positive
    exchange: Exchange  # fetches the positives that other ranks own
    user_pairs: Pairs
    item_pairs: Pairs
    item_inputs: Tensor  # [n of item_pairs] int64: position of those items among the ego items
    input_share: float  # nodes that enter the propagation, over all nodes (all ranks)
    packed: Packed | None = None  # where the tensors of a padded plan lie
