"""Uniformity over all pairs of the global batch: log-mean-exp of weighted pairs, plain or calibrated (docs/model.md).

The log-mean-exp of all pairs is not the mean of the ranks' log-mean-exps. So every rank gathers all rows of the batch
and computes the pairs of its own rows with all rows, block by block. Value and gradient equal those of one process.
The pair sum is symmetric, so this also gives the complete gradient of a rank's own rows, and none has to be sent.

Shapes: n own rows of width C * d, fused rows of width d.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.distributed.traffic import gathered, summed, traffic
from cm3_dist.kernels import Kernels
from cm3_dist.kernels.pair_sum import PairSum, Rows, pair_sum
from cm3_dist.pipeline.pair_weights import Pairs, PairWeight


def uniformity(
    x: Tensor,
    pairs: Pairs,
    t: float,
    scope: str,
    group: dist.ProcessGroup | None,
    fused: Tensor | None = None,
    clamp: tuple[float, float] = (0.0, 1.0),
    kernels: Kernels = "torch",
) -> Tensor:
    """Log of the weighted mean over pairs of exp(-t (|x_i - x_j|^2 [- 2 + 2 phi_ij])), a scalar equal on all ranks.

    The mean includes pairs i < j with weight w_i w_j, and pairs of copies of one row with weight v_i (see
    `pipeline.pair_weights.PairWeight`). phi_ij = clamp(fused_i . fused_j); without `fused` phi is 1, which is plain
    uniformity. Collective.

    Args:
        x: [n, C * d] unit rows of this rank, float32 or float64.
        pairs: their weights; `pairs.index` is not used here.
        t: temperature, at most 10: exponents then stay within +-40 and need no shift.
        scope: "global": pairs over all ranks; "local": pairs within a part, averaged by the weight of the parts' rows.
        group: process group that rows are gathered on; None for one process.
        fused: [n, d] rows of equal norm, at most 1; they receive a gradient as x does.
        clamp: bounds of phi; the upper one is at most the squared norm.
        kernels: of the pair sums on a GPU.
    """
    value: Tensor = _Uniformity.apply(x, fused, pairs, t, scope, group, clamp, kernels)
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
        kernels: Kernels,
    ) -> Tensor:
        # exp(-t (|a - b|^2 - 2 + 2 phi)) = exp(2t (a.b - phi)) on the sphere; plain uniformity has phi = 1.
        rows = Rows(x.detach(), None if fused is None else fused.detach(), pairs.weight.to(x.dtype))
        self_phi = 1.0 if fused is None else min(max(1.0, clamp[0]), clamp[1])
        copies = math.exp(2 * t * (1 - self_phi))
        if scope == "global":
            columns, first = _gather(rows, pairs.most, group)
            sums = _pair_sum(rows, columns, first, t, clamp, kernels)
            if group is not None:
                _sum(sums.total, group)
            # Scalars on the device, so that a replayed CUDA graph uses those of the current batch.
            value, scale = _log_mean(sums.total, copies * pairs.scalars[0], pairs.scalars[1], pairs.everywhere)
            found = [(sums, scale)]
        else:
            value, found = x.new_zeros((), dtype=torch.float64), []
            for begin, end, weight in zip(pairs.cuts, pairs.cuts[1:], pairs.parts, strict=False):
                part = rows[begin:end]
                sums = _pair_sum(part, part, 0, t, clamp, kernels)
                term, scale = _log_mean(sums.total, copies * weight.copies, weight.log_pairs, weight)
                share = weight.rows / pairs.within if weight.pairs > 0 else 0.0
                value = value + share * term
                found.append((sums, scale * share))
            if group is not None:
                _sum(value, group)
        scaled = [(sums, scale.to(x.dtype)) for sums, scale in found]
        grad_fused = [sums.fused * scale for sums, scale in scaled if sums.fused is not None]
        ctx.save_for_backward(_joined([sums.x * scale for sums, scale in scaled]), _joined(grad_fused))
        return value.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_x, grad_fused = ctx.saved_tensors
        return grad * grad_x, None if grad_fused is None else grad * grad_fused, None, None, None, None, None, None


def _pair_sum(own: Rows, columns: Rows, first: int, t: float, clamp: tuple[float, float], kernels: Kernels) -> PairSum:
    if not own.x.is_cuda or kernels == "torch":
        return pair_sum(own, columns, first, t, clamp)
    from cm3_dist.kernels.pair_sum_triton import triton_pair_sum

    return triton_pair_sum(own, columns, first, t, clamp)


def _gather(own: Rows, most: int, group: dist.ProcessGroup | None) -> tuple[Rows, int]:
    """Rows of all ranks, each padded to `most` rows with weight 0, and the index of this rank's first row."""
    if group is None:
        return own, 0
    x, fused = own.x, own.fused
    widths = [x.shape[1], 0 if fused is None else fused.shape[1], 1]
    packed = x.new_zeros(most, sum(widths))
    packed[: len(x)] = torch.cat([x, *([] if fused is None else [fused]), own.weight.unsqueeze(1)], dim=1)
    everything = x.new_empty(dist.get_world_size(group) * most, sum(widths))
    traffic.add("loss rows", gathered(packed.nbytes, dist.get_world_size(group)))
    dist.all_gather_single(everything, packed, group=group)
    all_x, all_fused, all_weight = everything.split(widths, dim=1)
    return Rows(all_x, None if fused is None else all_fused, all_weight.squeeze(1)), dist.get_rank(group) * most


def _sum(value: Tensor, group: dist.ProcessGroup) -> None:
    """Sums over the ranks, in place."""
    traffic.add("loss sums", summed(value.nbytes, dist.get_world_size(group)))
    dist.all_reduce(value, group=group)


def _log_mean(
    total: Tensor, copies: Tensor | float, log_pairs: Tensor | float, weight: PairWeight
) -> tuple[Tensor, Tensor]:
    """Log of the mean over pairs, and the factor of the gradients in `PairSum`; [] float64 each.

    Args:
        total: of `PairSum`, which counts every pair twice.
        copies: what the pairs of copies of one row add to the sum.
        log_pairs: log of the total weight of all pairs.
        weight: of the pairs; without pairs both results are 0.
    """
    if weight.pairs <= 0:
        return torch.zeros_like(total), torch.zeros_like(total)
    whole = total / 2 + copies
    return whole.log() - log_pairs, whole.reciprocal()


def _joined(gradients: list[Tensor]) -> Tensor | None:
    return torch.cat(gradients) if len(gradients) > 1 else next(iter(gradients), None)
