"""Alignment, user uniformity and calibrated item uniformity over the whole global batch (CM3.md section 3).

log-mean-exp over pairs does not average over ranks, so every rank gathers all rows of the batch, takes its own rows
against all of them block by block, and the scalar and its gradient are those of one process. Because the pair sum is
symmetric, a rank's own rows against all columns give the whole gradient of those rows: nothing travels back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cm3_dist.config import Loss
from cm3_dist.graph.exchange import fetch
from cm3_dist.plan import Pairs, StepPlan

PAIR_BLOCK = 2**22  # pairs computed at a time: 16 MiB in float32, however large the batch


@dataclass(frozen=True)
class Terms:
    """The loss of one rank's step. `local` is what this rank differentiates; the rest are global scalars, detached."""

    local: Tensor
    alignment: Tensor  # this rank's share: the sum over ranks is the term
    user_uniformity: Tensor
    item_uniformity: Tensor


def cm3_loss(
    users: Tensor, items: Tensor, fused: Tensor, plan: StepPlan, settings: Loss, group: dist.ProcessGroup | None
) -> Terms:
    """The loss of a step. Collective.

    Args:
        users, items: [., C * d] final rows of `plan.users` and `plan.items`, not normalised.
        fused: [n of plan.item_pairs, d] fused unit rows of the items that repel each other.
        plan: the step.
        settings: gamma, t, clamps, scope.
        group: of the rows; None for one process.
    """
    x_users, x_items = F.normalize(users, dim=-1), F.normalize(items, dim=-1)
    # A rank that receives nothing still takes part in the exchange, both ways.
    alone = plan.exchange.group is None
    positives = x_items if alone else torch.cat([x_items, fetch(x_items, plan.exchange)])
    ends = x_users.index_select(0, plan.positive_user), positives.index_select(0, plan.positive_item)
    distance = (ends[0] - ends[1]).square().sum(-1)
    alignment = distance.sum() / plan.size
    user_term = uniformity(
        x_users.index_select(0, plan.user_pairs.index), plan.user_pairs, settings.t, settings.scope, group
    )
    item_rows = x_items.index_select(0, plan.item_pairs.index)
    if settings.item_uniformity == "none":
        item_term = torch.zeros_like(user_term)
    elif settings.item_uniformity == "plain":
        item_term = uniformity(item_rows, plan.item_pairs, settings.t, settings.scope, group)
    else:
        clamp = (settings.min_sim, settings.max_sim)
        item_term = uniformity(item_rows, plan.item_pairs, settings.t, settings.scope, group, fused, clamp)
    local = alignment + settings.gamma / 2 * (user_term + item_term)
    return Terms(local, alignment.detach(), user_term.detach(), item_term.detach())


def uniformity(
    x: Tensor,
    pairs: Pairs,
    t: float,
    scope: str,
    group: dist.ProcessGroup | None,
    fused: Tensor | None = None,
    clamp: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Log of the weighted mean over pairs of exp(-t (|x_i - x_j|^2 [- 2 + 2 phi_ij])), a scalar equal on all ranks.

    The mean runs over pairs i < j with weight w_i w_j, and over the pairs that copies of one row form with each other,
    with weight v_i. phi_ij = clamp(fused_i . fused_j). Without `fused` this is plain uniformity. Collective.

    Args:
        x: [n, width] unit rows of this rank, float32 or float64.
        pairs: their weights; `pairs.index` is not used here.
        t: temperature, at most 10: exponents then stay within +-40 and need no shift.
        scope: "global": pairs over all ranks; "local": pairs within a part, averaged with the parts' weights.
        group: None for one process.
        fused: [n, d] unit rows, differentiated like x.
        clamp: bounds of phi.
    """
    value: Tensor = _Uniformity.apply(x, fused, pairs, t, scope, group, clamp)
    return value


class _Uniformity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        fused: Tensor | None,
        pairs: Pairs,
        t: float,
        scope: str,  # type: ignore[override]
        group: dist.ProcessGroup | None,
        clamp: tuple[float, float],
    ) -> Tensor:
        weight = pairs.weight.to(x.dtype)
        # exp(-t (|a - b|^2 - 2 + 2 phi)) = exp(2t (a.b - phi)) on the sphere; plain uniformity has phi = 1.
        self_phi = 1.0 if fused is None else min(max(1.0, clamp[0]), clamp[1])
        own = pairs.self_weight.to(x.dtype) * torch.exp(torch.tensor(2 * t * (1 - self_phi), dtype=x.dtype))
        grad_x, grad_fused = torch.zeros_like(x), None if fused is None else torch.zeros_like(fused)
        if scope == "global":
            columns = _gather(x, fused, weight, pairs.most, group)
            numerator = own.sum() + _pair_sum(x, fused, weight, columns, t, clamp, grad_x, grad_fused) / 2
            totals = torch.stack([numerator.double(), *_pair_weight(weight, pairs.self_weight)])
            if group is not None:
                dist.all_reduce(totals, group=group)
            total, denominator = totals[0], (totals[1].square() - totals[2]) / 2 + totals[3]
            if denominator <= 0:  # fewer than two rows: no pair, no term
                total = denominator = torch.ones_like(total)
            ctx.save_for_backward(
                grad_x / total.to(x.dtype), None if grad_fused is None else grad_fused / total.to(x.dtype)
            )
            return (total.log() - denominator.log()).to(x.dtype)
        shares, terms = [], []
        for begin, end in zip(pairs.cuts, pairs.cuts[1:], strict=False):
            part = slice(begin, end)
            columns = Columns(x[part], None if fused is None else fused[part], weight[part], 0)
            sums = _pair_sum(
                x[part],
                columns.fused,
                weight[part],
                columns,
                t,
                clamp,
                grad_x[part],
                None if grad_fused is None else grad_fused[part],
            )
            total = own[part].sum().double() + sums.double() / 2
            first, square, again = _pair_weight(weight[part], pairs.self_weight[part])
            denominator = (first.square() - square) / 2 + again
            empty = denominator <= 0  # fewer than two rows of this part: no pair, no term
            shares.append(torch.where(empty, 0.0, first))
            terms.append(
                torch.where(
                    empty, 0.0, torch.where(empty, 1.0, total).log() - torch.where(empty, 1.0, denominator).log()
                )
            )
            scale = torch.where(empty, 0.0, first / torch.where(empty, 1.0, total)).to(x.dtype)
            grad_x[part] *= scale
            if grad_fused is not None:
                grad_fused[part] *= scale
        sums = torch.stack([torch.stack(shares).sum(), (torch.stack(shares) * torch.stack(terms)).sum()])
        if group is not None:
            dist.all_reduce(sums, group=group)
        share = sums[0].clamp(min=torch.finfo(torch.float64).tiny).to(x.dtype)
        ctx.save_for_backward(grad_x / share, None if grad_fused is None else grad_fused / share)
        return sums[1].to(x.dtype) / share

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_x, grad_fused = ctx.saved_tensors
        return grad * grad_x, None if grad_fused is None else grad * grad_fused, None, None, None, None, None


@dataclass(frozen=True)
class Columns:
    """All rows a rank's own rows are paired with."""

    x: Tensor  # [N, width]
    fused: Tensor | None  # [N, d]
    weight: Tensor  # [N]; zero for padding
    first: int  # where the own rows begin


def _gather(x: Tensor, fused: Tensor | None, weight: Tensor, most: int, group: dist.ProcessGroup | None) -> Columns:
    """Every rank's rows, padded to `most` a rank with weight zero."""
    if group is None:
        return Columns(x, fused, weight, 0)
    widths = [x.shape[1], 0 if fused is None else fused.shape[1], 1]
    packed = x.new_zeros(most, sum(widths))
    packed[: len(x)] = torch.cat([x, *([] if fused is None else [fused]), weight.unsqueeze(1)], dim=1)
    world_size = dist.get_world_size(group)
    everything = x.new_empty(world_size * most, sum(widths))
    dist.all_gather_single(everything, packed, group=group)
    all_x, all_fused, all_weight = everything.split(widths, dim=1)
    first = dist.get_rank(group) * most
    return Columns(all_x, None if fused is None else all_fused, all_weight.squeeze(1), first)


def _pair_weight(weight: Tensor, self_weight: Tensor) -> Sequence[Tensor]:
    """Sums from which the weight of all pairs follows: sum w, sum w^2, sum v; in float64."""
    w = weight.double()
    return [w.sum(), w.square().sum(), self_weight.double().sum()]


def _pair_sum(
    x: Tensor,
    fused: Tensor | None,
    weight: Tensor,
    columns: Columns,
    t: float,
    clamp: tuple[float, float],
    grad_x: Tensor,
    grad_fused: Tensor | None,
) -> Tensor:
    """Sum over own rows i and all columns j != i of w_i w_j e_ij; the gradients of half of it are written in place.

    Half: as every unordered pair appears twice in the global sum, d(half)/dx_i is w_i sum_j w_j e_ij 2t x_j.
    """
    total = x.new_zeros((), dtype=torch.float64)
    block = max(1, PAIR_BLOCK // max(1, len(columns.x)))
    for begin in range(0, len(x), block):
        end = min(begin + block, len(x))
        exponent = x[begin:end] @ columns.x.T
        inside = None
        if fused is None:
            exponent -= 1
        else:
            phi = fused[begin:end] @ columns.fused.T  # type: ignore[union-attr]
            inside = (phi >= clamp[0]) & (phi <= clamp[1])
            exponent -= phi.clamp_(*clamp)
        pair = exponent.mul_(2 * t).exp_()
        pair *= columns.weight
        pair *= weight[begin:end].unsqueeze(1)
        rows = torch.arange(end - begin, device=x.device)
        pair[rows, columns.first + begin + rows] = 0
        total += pair.sum(dtype=torch.float64)
        grad_x[begin:end] = pair @ columns.x * (2 * t)
        if grad_fused is not None:
            grad_fused[begin:end] = pair.mul_(inside) @ columns.fused * (-2 * t)
    return total
