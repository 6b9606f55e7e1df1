"""Spherical Bezier fusion stays on the sphere, equals the formulas, and is finite and accurate where these are not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cm3_dist.model.spherical_fusion import bezier, mean, pairwise, slerp
from tests.support import reference


def _points(
    count: int, rows: int = 50, dim: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=-1) for _ in range(count)]


@pytest.mark.parametrize("modalities", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_rows_have_norm_one(modalities: int, dtype: torch.dtype) -> None:
    curve = torch.rand(50, dtype=dtype)
    norm = bezier(_points(modalities, dtype=dtype), curve).norm(dim=1)
    torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0, atol=1e-6)


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_curve_and_its_gradient_equal_the_formulas(modalities: int) -> None:
    curve, direction = torch.rand(20, dtype=torch.float64), torch.randn(20, 8, dtype=torch.float64)
    ours = [p.requires_grad_() for p in _points(modalities, rows=20)]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    a, b = bezier(ours, curve), reference.bezier(torch.stack(theirs), curve)
    torch.testing.assert_close(a, b)
    tangent = lambda x, y: (x * direction).sum() + 0 * y.sum()  # noqa: E731
    tangent(a, a).backward()
    tangent(b, b).backward()
    for p, q in zip(ours, theirs, strict=True):
        # Only the part along the sphere means anything: off it the two extend the curve differently.
        project = lambda g, x: g - (g * x).sum(1, keepdim=True) * x  # noqa: E731
        torch.testing.assert_close(project(p.grad, p.detach()), project(q.grad, q.detach()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-4, 9e-4, 1.1e-3, 0.1, 1.5, 3.1, 3.1405, 3.141592, torch.pi])
@pytest.mark.parametrize("curve", [0.0, 1e-6, 0.3, 0.5, 1.0])
def test_gradients_are_finite_at_every_angle(angle: float, curve: float) -> None:
    a = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    b = torch.tensor([[torch.tensor(angle).cos(), torch.tensor(angle).sin(), 0.0]], requires_grad=True)
    point = slerp(a, b, torch.tensor([curve]))
    point.sum().backward()
    assert torch.isfinite(point).all()
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()
    assert point.norm().item() == pytest.approx(1, abs=1e-6)


def _tangent(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The part of a gradient along the sphere at x: off it, formulas that agree on the sphere may differ."""
    return gradient - (gradient * x).sum(1, keepdim=True) * x


@pytest.mark.parametrize("angle", [1e-5, 5e-4, 9.9e-4, 1.01e-3, 1e-2, 0.3, 1.5, 3.0, 3.13])
def test_float32_gradients_are_right_at_every_angle(angle: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, towards, direction = (torch.randn(40, 16, generator=generator, dtype=torch.float64) for _ in range(3))
    a = F.normalize(a, dim=1)
    b = math.cos(angle) * a + math.sin(angle) * F.normalize(_tangent(towards, a), dim=1)
    curve = torch.rand(40, generator=generator, dtype=torch.float64)
    found = []
    for function, dtype in ((slerp, torch.float32), (reference.slerp, torch.float64)):
        ends = [end.to(dtype, copy=True).requires_grad_() for end in (a, b)]
        point = function(ends[0], ends[1], curve.to(dtype))
        (point * direction).sum().backward()
        found.append(
            [point.detach().double(), *(_tangent(e.grad.double(), x) for e, x in zip(ends, (a, b), strict=True))]
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4 * max(1.0, float(theirs.abs().max()) / 10))


@pytest.mark.parametrize("kind", ["identical", "opposite", "zero", "one zero"])
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_gradients_are_finite_for_degenerate_features(kind: str, modalities: int) -> None:
    """Through the normalisation too, in float32, as the encoder uses it."""
    base = torch.randn(6, 8)
    raw = [base.clone() for _ in range(modalities)]
    if kind == "opposite":
        raw[1] = -base
    elif kind == "zero":
        raw = [torch.zeros(6, 8) for _ in raw]
    elif kind == "one zero":
        raw[0] = torch.zeros(6, 8)
    raw = [r.requires_grad_() for r in raw]
    for curve in (torch.rand(6), torch.full((6,), 0.5), torch.zeros(6), torch.ones(6)):
        fused = bezier([F.normalize(r, dim=-1) for r in raw], curve)
        (fused * torch.randn(6, 8)).sum().backward()
        assert torch.isfinite(fused).all()
        for r in raw:
            assert torch.isfinite(r.grad).all()
        if kind in ("identical", "opposite"):
            torch.testing.assert_close(fused.norm(dim=1), torch.ones(6), rtol=0, atol=1e-5)
        if kind == "identical":
            torch.testing.assert_close(fused, F.normalize(base, dim=-1), rtol=0, atol=1e-5)


def test_the_curve_begins_and_ends_at_its_end_points() -> None:
    points = _points(3)
    torch.testing.assert_close(bezier(points, torch.zeros(50, dtype=torch.float64)), points[0])
    torch.testing.assert_close(bezier(points, torch.ones(50, dtype=torch.float64)), points[-1])


@pytest.mark.parametrize("modalities", [1, 2, 3, 5])
@pytest.mark.parametrize("fuse", [pairwise, mean])
def test_other_fusions_stay_on_the_sphere_and_do_not_ask_for_an_order(fuse: Any, modalities: int) -> None:
    points, half = _points(modalities), torch.full((50,), 0.5, dtype=torch.float64)
    fused = fuse(points, half)
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(fuse(points[::-1], half), fused)
    if modalities == 2:  # at the middle of an arc stands the mean of its ends
        torch.testing.assert_close(fused, bezier(points, half))


def test_near_each_other_points_count_binomially() -> None:
    """At the curve's middle: so the order of three points or more matters, but turning it round does not."""
    base = F.normalize(torch.randn(1, 8, dtype=torch.float64), dim=1)
    points = [F.normalize(base + 1e-3 * torch.randn(1, 8, dtype=torch.float64), dim=1) for _ in range(5)]
    half = torch.full((1,), 0.5, dtype=torch.float64)
    weighted = sum(math.comb(4, place) * point for place, point in enumerate(points))
    torch.testing.assert_close(bezier(points, half), F.normalize(weighted, dim=1), rtol=0, atol=1e-8)
    assert not torch.allclose(
        bezier([points[place] for place in (2, 1, 0, 3, 4)], half), bezier(points, half), atol=1e-5
    )
    curve = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(bezier(points[::-1], curve), bezier(points, 1 - curve))
