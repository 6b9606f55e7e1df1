"""Fusion of the modalities' points on the sphere; the model's own is the Bezier curve there (CM3.md section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from cm3_dist.model.l2_normalize import l2_normalize

# Below this angle (and this close to pi) sin(theta) no longer divides safely in float32: the chord takes over, whose
# relative error against the arc is below angle^2 / 8.
SMALL_ANGLE = 1e-3


def slerp(a: Tensor, b: Tensor, curve: Tensor) -> Tensor:
    """Point at `curve` on the great circle from `a` to `b`.

    Args:
        a, b: [n, d] unit rows.
        curve: [n] in [0, 1]; 0 gives `a`, 1 gives `b`.

    Returns:
        [n, d] unit rows, with finite gradients everywhere. For equal rows it is that row. Opposite rows have no great
        circle of their own; the chord, renormalised, decides, and at its midpoint `a` stands.
    """
    curve = curve.unsqueeze(-1)
    # atan2 of the half-angle chords is accurate at both ends, where arccos of the dot product is not.
    difference, total = _norm(a - b), _norm(a + b)
    theta = 2 * torch.atan2(difference, total)
    safe = (theta > SMALL_ANGLE) & (theta < torch.pi - SMALL_ANGLE)
    angle = torch.where(safe, theta, torch.ones_like(theta))
    arc = (torch.sin((1 - curve) * angle) * a + torch.sin(curve * angle) * b) / torch.sin(angle)
    chord = (1 - curve) * a + curve * b
    chord = torch.where((chord * chord).sum(-1, keepdim=True) > SMALL_ANGLE**2, chord, a)
    # The floor of the norm only matters where both rows are zero, whose gradient it keeps finite.
    return torch.nn.functional.normalize(torch.where(safe, arc, chord), dim=-1, eps=SMALL_ANGLE)


def bezier(points: Sequence[Tensor], curve: Tensor) -> Tensor:
    """The spherical Bezier curve of M >= 1 control points: M tensors [n, d] of unit rows, `curve` [n] -> [n, d].

    De Casteljau's algorithm with slerp in place of lerp.
    """
    level = list(points)
    while len(level) > 1:
        level = [slerp(a, b, curve) for a, b in zip(level, level[1:], strict=False)]
    return level[0]


def pairwise(points: Sequence[Tensor], curve: Tensor) -> Tensor:
    """The normalised mean of the points at `curve` on all pairs' arcs; of one or two points it is the curve."""
    if len(points) < 3:
        return bezier(points, curve)
    arcs = [slerp(a, b, curve) for a, b in combinations(points, 2)]
    return l2_normalize(torch.stack(arcs).sum(0))


def mean(points: Sequence[Tensor], curve: Tensor) -> Tensor:
    """The normalised mean of the points, whatever `curve` says."""
    return l2_normalize(torch.stack(list(points)).sum(0))


def _norm(x: Tensor) -> Tensor:
    """Row norms whose gradient at zero is zero instead of NaN."""
    square = (x * x).sum(-1, keepdim=True)
    positive = square > 0
    return torch.where(
        positive, torch.where(positive, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square)
    )
