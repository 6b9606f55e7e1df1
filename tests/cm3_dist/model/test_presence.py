"""Items that lack modalities: fusion and channels against a second, per-item implementation in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cm3_dist.model.item_encoder import FUSIONS, ItemEncoder
from cm3_dist.model.presence import presence
from tests.support import reference as ref

ITEMS, DIM = 40, 6


def of_one(points: Tensor, curve: Tensor, fusion: str) -> Tensor:
    """The fused row [d] of one item with the points [M, d] that it has, by the definition."""
    if len(points) == 1:
        return points[0]
    if fusion == "mean":
        return ref.unit(points.sum(0))
    fuse: Callable[[Tensor, Tensor], Tensor] = ref.bezier if fusion == "bezier" else ref.pairwise
    return fuse(points.unsqueeze(1), curve.reshape(1))[0]


def random_masks(modalities: int, seed: int = 0) -> list[Tensor]:
    """[n] masks of the items that have a modality; every combination of at least one occurs."""
    combinations = torch.cartesian_prod(*[torch.tensor([True, False])] * modalities).reshape(-1, modalities)[:-1]
    rows = torch.arange(ITEMS) % len(combinations)
    return list(combinations[rows].unbind(1))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_a_fused_row_is_that_of_the_modalities_that_are_there(fusion: str, modalities: int) -> None:
    generator = torch.Generator().manual_seed(modalities)
    # Before normalisation, so that gradients are compared along the sphere.
    points = [torch.randn(ITEMS, DIM, generator=generator).double() for _ in range(modalities)]
    curve = torch.rand(ITEMS, generator=generator).double()
    present = random_masks(modalities)
    given = [p.clone().requires_grad_() for p in points]
    wanted = [p.clone().requires_grad_() for p in points]
    found = FUSIONS[fusion]([ref.unit(p) for p in given], curve, present)
    rows = []
    for item in range(ITEMS):
        own = [ref.unit(wanted[m])[item] for m in range(modalities) if present[m][item]]
        rows.append(of_one(torch.stack(own), curve[item], fusion))
    expected = torch.stack(rows)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(ITEMS).double(), rtol=1e-9, atol=1e-9)
    direction = torch.randn(ITEMS, DIM, generator=generator).double()
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for ours, theirs, mask in zip(given, wanted, present, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
        assert not ours.grad[~mask].any()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_masks_of_items_that_have_all_change_no_bit(fusion: str, modalities: int) -> None:
    points = [ref.unit(torch.randn(ITEMS, DIM)) for _ in range(modalities)]
    curve = torch.rand(ITEMS)
    everything = [torch.ones(ITEMS, dtype=torch.bool)] * modalities
    assert torch.equal(FUSIONS[fusion](points, curve, everything), FUSIONS[fusion](points, curve))


@pytest.mark.parametrize("fusion", [*FUSIONS, "concat"])
@pytest.mark.parametrize("order", [None, ["text", "audio", "image"]])
def test_the_encoder_reads_only_what_is_there(fusion: str, order: list[str] | None) -> None:
    dims = {"image": 5, "text": 4, "audio": 3}
    encoder = ItemEncoder(dims, DIM, seed=1, fusion=fusion, order=order)
    missing = dict(zip(dims, (~mask for mask in random_masks(3)), strict=True))
    features = {name: torch.randn(ITEMS, width) for name, width in dims.items()}
    curve = torch.rand(ITEMS)
    channels, fused = encoder(features, curve, missing)
    other = {
        name: torch.where(missing[name].unsqueeze(1), torch.randn_like(values), values)
        for name, values in features.items()
    }
    for ours, theirs in zip([*channels, fused], _flat(encoder(other, curve, missing)), strict=True):
        assert torch.equal(ours, theirs)
    for name, rows in zip(dims, channels, strict=True):
        assert torch.equal(rows.any(1), ~missing[name])
    whole_channels, whole = encoder(features, curve)
    complete = ~torch.stack(list(missing.values())).any(0)
    assert torch.equal(fused[complete], whole[complete])
    assert not torch.equal(fused, whole)
    for rows, whole_rows in zip(channels, whole_channels, strict=True):
        assert torch.equal(rows[complete], whole_rows[complete])


def test_an_item_that_lacks_all_is_one_with_rows_of_zeros() -> None:
    dims = {"image": 5, "text": 4}
    encoder = ItemEncoder(dims, DIM, seed=1)
    zeros, curve = {name: torch.zeros(3, width) for name, width in dims.items()}, torch.rand(3)
    lacks = {name: torch.tensor([True, False, True]) for name in dims}
    for ours, theirs in zip(_flat(encoder(zeros, curve, lacks)), _flat(encoder(zeros, curve)), strict=True):
        assert torch.equal(ours, theirs)


def _flat(found: tuple[list[Tensor], Tensor]) -> list[Tensor]:
    return [*found[0], found[1]]


def test_presence() -> None:
    assert presence(["image", "text"], {}) is None
    found = presence(["image", "text"], {"image": torch.tensor([True, False])})
    assert found is not None
    assert {name: mask.tolist() for name, mask in found.items()} == {"image": [False, True], "text": [True, True]}
    both = presence(["image"], {"image": torch.tensor([True, False])})
    assert both is not None
    assert both["image"].tolist() == [True, True]
