"""The plan of a step: its batch, its propagation operator, and which rows ranks exchange."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from cm3_dist.graph.halo_exchange import Exchange
from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.pipeline.device_transfer import Packed
from cm3_dist.pipeline.pair_weights import Pairs


@dataclass(frozen=True)
class Inputs:
    """The rows that enter the propagation, and the operator."""

    propagation: Propagation
    users: Tensor  # [n] int64 global rows
    mixed: Tensor  # [b] int64 global rows: the batch's distinct users, whose mixing logits are looked up
    items: Tensor  # [m] int64 global rows
    features: dict[str, Tensor]  # modality -> [m, d_m]
    curve: Tensor  # [m] float32: the curve parameter of every item
    whole: bool  # `users` and `items` are all rows of this rank, in order
    missing: dict[str, Tensor] = field(
        default_factory=dict
    )  # modality -> [m] bool: items that lack it (--missing mask)


@dataclass(frozen=True)
class StepPlan:
    """One step of one rank."""

    epoch: int
    step: int  # within the epoch
    size: int  # positives of the step over all ranks
    inputs: Inputs
    users: Tensor | None  # [n] int64: indices of the batch's unique users in the propagated rows; None if
    # the rows are exactly those users, in order
    items: Tensor | None  # [m] int64: the same for the items that any rank's batch contains
    positive_user: Tensor  # [b] int64: index of every positive's user in `users`
    positive_item: Tensor  # [b] int64: index of every positive in [`items`; fetched items]
    positive_weight: Tensor  # [b] float32, which sums to 1 over all ranks; 0 for padding
    exchange: Exchange  # fetches positives that other ranks own
    user_pairs: Pairs
    item_pairs: Pairs
    item_inputs: Tensor  # [n of item_pairs] int64: indices of those items in `inputs.items`
    input_share: float  # share of all nodes that enter the propagation, over all ranks
    packed: Packed | None = None  # the buffer with the tensors of a padded plan
