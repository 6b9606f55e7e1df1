"""The loss of a step: alignment + gamma/2 (user uniformity + item uniformity), over the global batch (docs/model.md).

Alignment is a mean over the positives, weighted by their interactions' weights: `plan.positive_weight` sums to 1.

Shapes: n users and m items of the batch that this rank owns, b positives of its users, C channels of width d, k items
in the item uniformity term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.config.settings import Loss
from cm3_dist.graph.halo_exchange import fetch
from cm3_dist.kernels import Kernels
from cm3_dist.loss.calibration import calibrating
from cm3_dist.loss.constants import LossConstants
from cm3_dist.loss.uniformity import uniformity
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.pipeline.step_plan import StepPlan


@dataclass(frozen=True)
class LossTerms:
    """The loss of a step, as scalars."""

    local: Tensor  # the part of the loss that this rank differentiates
    alignment: Tensor  # this rank's share, detached: the sum over ranks is the term
    user_uniformity: Tensor  # over all ranks, detached
    item_uniformity: Tensor  # over all ranks, detached


def cm3_loss(
    users: Tensor,
    items: Tensor,
    fused: Tensor,
    plan: StepPlan,
    settings: Loss,
    constants: LossConstants,
    group: dist.ProcessGroup | None,
    kernels: Kernels = "torch",
) -> LossTerms:
    """The loss of a step. Collective.

    Args:
        users: [n, C * d] final rows of `plan.users`, not normalised.
        items: [m, C * d] final rows of `plan.items`, not normalised.
        fused: [k, d] fused unit rows of the k items of `plan.item_pairs`.
        plan: the step.
        settings: t, clamps, scope.
        constants: gamma and the factor of phi.
        group: process group that rows are exchanged on; None for one process.
        kernels: of the pair sums on a GPU.
    """
    x_users, x_items = l2_normalize(users), l2_normalize(items)
    # A rank that receives no rows still takes part in the exchange, forward and backward.
    alone = plan.exchange.group is None
    positives = x_items if alone else torch.cat([x_items, fetch(x_items, plan.exchange)])
    ends = x_users.index_select(0, plan.positive_user), positives.index_select(0, plan.positive_item)
    distance = (ends[0] - ends[1]).square().sum(-1)
    alignment = torch.dot(distance, plan.positive_weight.to(distance.dtype))
    user_rows = x_users.index_select(0, plan.user_pairs.index)
    user_term = uniformity(user_rows, plan.user_pairs, settings.t, settings.scope, group, kernels=kernels)
    item_rows = x_items.index_select(0, plan.item_pairs.index)
    if settings.item_uniformity == "none":
        item_term = torch.zeros_like(user_term)
    else:
        calibration = calibrating(fused, settings, constants.reliability)
        item_term = uniformity(item_rows, plan.item_pairs, settings.t, settings.scope, group, *calibration, kernels)
    half_gamma = constants.gamma / 2
    local = alignment + half_gamma * (user_term + item_term)
    return LossTerms(local, alignment.detach(), user_term.detach(), item_term.detach())
