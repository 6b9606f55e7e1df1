"""Fusion of the modalities' points on the unit sphere; CM3 uses the spherical Bezier curve (docs/model.md).

Shapes: n items, points of width d and norm 1, one curve parameter per item. `present` is a mask [n] per point of the
items that have it, at least one each; None if all have all. Points that an item lacks are computed, but do not count.
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


def bezier(points: Sequence[Tensor], curve: Tensor, present: Sequence[Tensor] | None = None) -> Tensor:
    """The spherical Bezier curve, by De Casteljau's algorithm with slerp instead of lerp.

    Args:
        points: M >= 1 control points, [n, d] unit rows each.
        curve: [n] curve parameters in [0, 1].
        present: the curve of an item has the control points that it has, in their order; a single one is the result.

    Returns:
        [n, d] unit rows.
    """
    level = list(points) if present is None else _present_first(points, present)
    result = level[0]
    while len(level) > 1:
        level = [slerp(a, b, curve) for a, b in zip(level, level[1:], strict=False)]
        if present is None:
            result = level[0]
        else:  # the first point of a level depends on one more control point than that of the level before
            reached = len(points) - len(level) < torch.stack(list(present)).sum(0)
            result = torch.where(reached.unsqueeze(1), level[0], result)
    return result


def pairwise(points: Sequence[Tensor], curve: Tensor, present: Sequence[Tensor] | None = None) -> Tensor:
    """The normalised mean of the slerps of all pairs at `curve`; arguments as in `bezier`, equal to it for M <= 2."""
    if len(points) < 3:
        return bezier(points, curve, present)
    arcs = [slerp(a, b, curve) for a, b in combinations(points, 2)]
    if present is None:
        return l2_normalize(torch.stack(arcs).sum(0))
    pairs = [a & b for a, b in combinations(present, 2)]
    single = torch.stack(list(present)).sum(0) == 1
    alone = torch.stack(without_absent(points, present)).sum(0)
    several = l2_normalize(torch.stack(without_absent(arcs, pairs)).sum(0))
    return torch.where(single.unsqueeze(1), alone, several)


def mean(points: Sequence[Tensor], curve: Tensor, present: Sequence[Tensor] | None = None) -> Tensor:
    """The normalised mean of the points; `curve` is not used."""
    return l2_normalize(torch.stack(without_absent(points, present)).sum(0))


def without_absent(points: Sequence[Tensor], present: Sequence[Tensor] | None) -> list[Tensor]:
    """The points [n, d], zeros where an item lacks one."""
    if present is None:
        return list(points)
    return [rows.masked_fill(~mask.unsqueeze(1), 0) for rows, mask in zip(points, present, strict=True)]


def _present_first(points: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
    """The points of every item with those that it has first, in their order."""
    absent = (~torch.stack(list(present), 1)).to(torch.uint8)
    order = torch.argsort(absent, dim=1, stable=True)
    stacked = torch.stack(list(points), 1)
    return list(stacked.gather(1, order.unsqueeze(-1).expand_as(stacked)).unbind(1))


def _norm(x: Tensor) -> Tensor:
    """Row norms whose gradient at zero is zero instead of NaN."""
    square = (x * x).sum(-1, keepdim=True)
    positive = square > 0
    return torch.where(
        positive, torch.where(positive, square, torch.ones_like(square)).sqrt(), torch.zeros_like(square)
    )
