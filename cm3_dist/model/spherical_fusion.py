"""Fusion of the modalities' points on the unit sphere; CM3 uses the spherical Bezier curve (docs/model.md).

Shapes: n items, points of width d and norm 1, one curve parameter per item.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from cm3_dist.model.l2_normalize import l2_normalize

# Within this angle of 0 and of pi, dividing by sin(theta) is inaccurate in float32. The chord is used instead, whose
# error relative to the arc is below angle^2 / 8.
SMALL_ANGLE = 1e-3


def slerp(a: Tensor, b: Tensor, curve: Tensor) -> Tensor:
    """Point at `curve` on the great circle from `a` to `b`.

    Args:
        a, b: [n, d] unit rows.
        curve: [n] in [0, 1]; 0 gives `a`, 1 gives `b`.

    Returns:
        [n, d] unit rows, with finite gradients everywhere. Equal rows give that row. Opposite rows have no unique great
        circle: the result is the normalised chord, and `a` at its midpoint.
    """
    curve = curve.unsqueeze(-1)
    # atan2 of the half-angle chords is accurate near 0 and pi, where arccos of the dot product is not.
    difference, total = _norm(a - b), _norm(a + b)
    theta = 2 * torch.atan2(difference, total)
    safe = (theta > SMALL_ANGLE) & (theta < torch.pi - SMALL_ANGLE)
    angle = torch.where(safe, theta, torch.ones_like(theta))
    arc = (torch.sin((1 - curve) * angle) * a + torch.sin(curve * angle) * b) / torch.sin(angle)
    chord = (1 - curve) * a + curve * b
    chord = torch.where((chord * chord).sum(-1, keepdim=True) > SMALL_ANGLE**2, chord, a)
    # The floor of the norm matters only for zero rows, whose gradient it keeps finite.
    return torch.nn.functional.normalize(torch.where(safe, arc, chord), dim=-1, eps=SMALL_ANGLE)


def bezier(points: Sequence[Tensor], curve: Tensor) -> Tensor:
    """The spherical Bezier curve, by De Casteljau's algorithm with slerp instead of lerp.

    Args:
        points: M >= 1 control points, [n, d] unit rows each.
        curve: [n] curve parameters in [0, 1].

    Returns:
        [n, d] unit rows.
    """
    level = list(points)
    while len(level) > 1:
        level = [slerp(a, b, curve) for a, b in zip(level, level[1:], strict=False)]
    return level[0]


def pairwise(points: Sequence[Tensor], curve: Tensor) -> Tensor:
    """The normalised mean of the slerps of all pairs at `curve`; arguments as in `bezier`, equal to it for M <= 2."""
    if len(points) < 3:
        return bezier(points, curve)
    arcs = [slerp(a, b, curve) for a, b in combinations(points, 2)]
    return l2_normalize(torch.stack(arcs).sum(0))


def mean(points: Sequence[Tensor], curve: Tensor) -> Tensor:
    """The normalised mean of the points; `curve` is not used."""
    return l2_normalize(torch.stack(list(points)).sum(0))


def _norm(x: Tensor) -> Tensor:
    """Row norms whose gradient at zero is zero instead of NaN."""
    square = (x * x).sum(-1, keepdim=True)
    positive = square > 0
    return torch.where(
        positive, torch.where(positive, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square)
    )
