"""The model, its loss and its evaluation written down a second time: dense, float64, one process, plain.

Written from the formulas alone (docs/model.md): nothing is imported from the trainer and nothing is fast.
Shapes: U users, I items, M modalities, C = M + 1 channels of width d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


# Forward
def unit(x: Tensor) -> Tensor:
    """[N, d] -> its rows divided by their norms."""
    return x / x.norm(dim=-1, keepdim=True)


def slerp(a: Tensor, b: Tensor, lam: Tensor) -> Tensor:
    """Spherical interpolation of unit rows a, b [N, d] at lam [N]: the closed form, undefined for opposite rows.

    Equal rows give that row.
    """
    theta = torch.arccos((a * b).sum(-1, keepdim=True).clamp(-1, 1))
    lam = lam.unsqueeze(-1)
    curve = (torch.sin((1 - lam) * theta) * a + torch.sin(lam * theta) * b) / torch.sin(theta)
    return torch.where(theta > 0, curve, a)


def bezier(points: Tensor, lam: Tensor) -> Tensor:
    """Spherical Bezier curve: control points [M, N, d] of unit rows at lam [N] -> [N, d] (De Casteljau)."""
    while len(points) > 1:
        points = torch.stack([slerp(points[m], points[m + 1], lam) for m in range(len(points) - 1)])
    return points[0]


@dataclass(frozen=True)
class Modality:
    """Encoder weights of one modality: W1 [4d, d_m], b1 [4d], W2 [d, 4d] and the point's Linear [d, d_m], [d]."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    point: Tensor
    point_bias: Tensor


def pairwise(points: Tensor, lam: Tensor) -> Tensor:
    """Normalised sum of slerp(a, b; lam) over all pairs of points [M, N, d], M >= 2 -> [N, d]."""
    count = len(points)
    return unit(sum(slerp(points[a], points[b], lam) for a in range(count) for b in range(a + 1, count)))


def encode(
    features: Sequence[Tensor],
    weights: Sequence[Modality],
    lam: Tensor,
    fuse: Callable[[Tensor, Tensor], Tensor] = bezier,
) -> tuple[Tensor, Tensor]:
    """Features M x [I, d_m] -> modality channels [I, M, d], not normalised, and fused rows [I, d] of norm 1.

    `fuse` makes the fused rows of the points [M, I, d] and `lam`.
    """
    channels, points = [], []
    for f, m in zip(features, weights, strict=True):
        hidden = f @ m.w1.T + m.b1
        channels.append(torch.where(hidden > 0, hidden, 0.01 * hidden) @ m.w2.T)
        points.append(unit(f @ m.point.T + m.point_bias))
    return torch.stack(channels, 1), fuse(torch.stack(points), lam)


def ego(channels: Tensor) -> Tensor:
    """[N, C, d] -> [N, C * d]: every channel L2-normalised, then laid side by side."""
    return unit(channels).reshape(len(channels), -1)


def normalised_adjacency(a: Tensor) -> Tensor:
    """D^-1/2 A D^-1/2 of the bipartite graph with interactions a [U, I]: [U + I, U + I]. Isolated nodes keep zeros.

    The entries of `a` are ones, or the weights of the interactions; D is their sum then.
    """
    users, items = a.shape
    whole = a.new_zeros(users + items, users + items)
    whole[:users, users:] = a
    whole[users:, :users] = a.T
    degree = whole.sum(1)
    scale = torch.where(degree > 0, degree, torch.ones_like(degree)).rsqrt()
    return scale[:, None] * whole * scale[None, :]


def propagate(a: Tensor, e_u: Tensor, e_i: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Sum over l = 0..layers of A^l E for interactions a [U, I]: user rows [U, w] and item rows [I, w]."""
    adjacency = normalised_adjacency(a)
    rows = torch.cat([e_u, e_i])
    total = sum((torch.linalg.matrix_power(adjacency, layer) @ rows for layer in range(1, layers + 1)), rows)
    return total[: len(e_u)], total[len(e_u) :]


def user_rows(r_u: Tensor, theta: Tensor) -> Tensor:
    """Propagated users [U, C * d] with mixing logits [U, C]: channel c times softmax(theta)_c."""
    share = torch.exp(theta) / torch.exp(theta).sum(1, keepdim=True)
    return r_u * share.repeat_interleave(r_u.shape[1] // theta.shape[1], dim=1)


def item_rows(r_i: Tensor, s: Tensor, layers: int) -> Tensor:
    """Propagated items [I, C * d] plus S^layers of them; no item graph with layers = 0."""
    return r_i + torch.linalg.matrix_power(s, layers) @ r_i if layers else r_i


def item_graph(features: Sequence[Tensor], mixture: Sequence[float], k: int) -> Tensor:
    """S [I, I]: row i has 1/k at the k items of largest cosine to i (i itself among them), mixed over modalities."""
    total = torch.zeros(len(features[0]), len(features[0]), dtype=torch.float64)
    for f, share in zip(features, mixture, strict=True):
        cosine = unit(f) @ unit(f).T
        total += torch.zeros_like(cosine).scatter_(1, cosine.topk(k, dim=1).indices, share / k)
    return total


def masked_item_graph(features: Sequence[Tensor], present: Tensor, mixture: Sequence[float], k: int) -> Tensor:
    """The same where item i has only the modalities m with `present` [M, I]: the others give and get no neighbours.

    The shares of those that an item has are scaled to a sum of 1. An item that has none is its only neighbour.
    """
    count = present.shape[1]
    total = torch.zeros(count, count, dtype=torch.float64)
    for item in range(count):
        own = [m for m in range(len(features)) if present[m, item]]
        whole = sum(mixture[m] for m in own)
        if not own:
            total[item, item] = 1
        for m in own:
            others = present[m].nonzero().ravel()
            cosine = unit(features[m][others]) @ unit(features[m][item])
            total[item, others[cosine.topk(k).indices]] += mixture[m] / whole / k
    return total


# Loss
def alignment(xu: Tensor, xi: Tensor) -> Tensor:
    """Mean over positives of |x_u - x_i|^2; both [B, w]."""
    return ((xu - xi) ** 2).sum(1).mean()


def weighted_alignment(xu: Tensor, xi: Tensor, w: Tensor) -> Tensor:
    """Mean over positives of |x_u - x_i|^2, weighted by w [B]."""
    return (w * ((xu - xi) ** 2).sum(1)).sum() / w.sum()


def _pairs(n: int) -> tuple[Tensor, Tensor]:
    """All i < j."""
    first, second = torch.triu_indices(n, n, 1)
    return first, second


def user_uniformity(x: Tensor, t: float) -> Tensor:
    """Log of the mean over all pairs of entries of exp(-t |x_i - x_j|^2); x [B, w], a repeated user counts again."""
    i, j = _pairs(len(x))
    return torch.exp(-t * ((x[i] - x[j]) ** 2).sum(1)).mean().log()


def _potential(x: Tensor, s: Tensor, t: float, min_sim: float, max_sim: float, calibrated: bool) -> Tensor:
    """e_ij of all pairs i < j; s [B, d] need not be normalised."""
    i, j = _pairs(len(x))
    exponent = ((x[i] - x[j]) ** 2).sum(1)
    if calibrated:
        phi = ((s[i] * s[j]).sum(1) / (s[i].norm(dim=1) * s[j].norm(dim=1))).clamp(min_sim, max_sim)
        exponent = exponent - 2 + 2 * phi
    return torch.exp(-t * exponent)


def item_uniformity(x: Tensor, s: Tensor, t: float, min_sim: float, max_sim: float, calibrated: bool) -> Tensor:
    """Log of the mean over all pairs of the drawn items x [B, w], fused rows s [B, d]; repeats count again."""
    return _potential(x, s, t, min_sim, max_sim, calibrated).mean().log()


def weighted_item_uniformity(
    x: Tensor, s: Tensor, w: Tensor, t: float, min_sim: float, max_sim: float, calibrated: bool
) -> Tensor:
    """log(sum_{i<j} w_i w_j e_ij / sum_{i<j} w_i w_j), w [B]."""
    i, j = _pairs(len(x))
    weight = w[i] * w[j]
    return ((weight * _potential(x, s, t, min_sim, max_sim, calibrated)).sum() / weight.sum()).log()


def inclusion_probability(degree: Tensor, size: int, train: int) -> Tensor:
    """That an item of this training degree is among `size` of `train` positives, each drawn independently."""
    return 1 - (1 - size / train) ** degree


def total(aligned: Tensor, users: Tensor, items: Tensor, gamma: float) -> Tensor:
    """Alignment + gamma / 2 * (user uniformity + item uniformity)."""
    return aligned + gamma / 2 * (users + items)


# Evaluation
def ranking(scores: Sequence[float], allowed: Collection[int], k: int) -> list[int]:
    """The k best of the `allowed` items by score, ties by smaller item."""
    return sorted(allowed, key=lambda item: (-scores[item], item))[:k]


def metrics(ranked: Sequence[int], relevant: Collection[int], k: int) -> dict[str, float]:
    """Recall, NDCG, precision and MAP at k of one user's ranking."""
    hit = [item in relevant for item in ranked[:k]]
    best = min(k, len(relevant))
    ideal = sum(1 / math.log2(position + 2) for position in range(best))
    average = sum(sum(hit[: position + 1]) / (position + 1) for position in range(len(hit)) if hit[position])
    return {
        f"recall@{k}": sum(hit) / len(relevant),
        f"ndcg@{k}": sum(1 / math.log2(position + 2) for position in range(len(hit)) if hit[position]) / ideal,
        f"precision@{k}": sum(hit) / k,
        f"map@{k}": average / best,
    }
