"""phi: amplification compared with its closed form, bounds, gradient, reliability."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3_dist.config.settings import Loss, Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.loss.calibration import calibrating, trust
from cm3_dist.loss.uniformity import uniformity
from cm3_dist.pipeline.pair_weights import Pairs, PairWeight
from cm3_dist.training.trainer import Trainer
from partition.errors import InputError
from partition.folder.manifest import read_manifest
from tests.support import reference as ref
from tests.support.small import prepare_small, small_settings

SIZES, ITEMS = (4, 4, 4), 12


def _pairs(count: int) -> Pairs:
    weight = PairWeight.of(count, count, 0.0)
    return Pairs(
        torch.arange(count), torch.ones(count), [0, count], [weight], weight, weight.scalars(), float(count), count
    )


def _simplex(count: int) -> Tensor:
    """[count, count] unit rows, all pairs with the inner product -1 / (count - 1)."""
    return F.normalize(torch.eye(count, dtype=torch.float64) - 1 / count, dim=1)


def _rows_with(similarity: Tensor) -> Tensor:
    """Unit rows whose Gram matrix is `similarity`."""
    return torch.linalg.cholesky(similarity)


def _blocks(inside: float, across: float) -> tuple[Tensor, Tensor]:
    """Similarities of three blocks of four items, and which pairs are inside one."""
    block = torch.block_diag(*[torch.ones(size, size, dtype=torch.float64) for size in SIZES])
    similarity = across + (inside - across) * block
    return similarity.fill_diagonal_(1), block.bool()


@pytest.mark.parametrize("t", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.3, 0.6), (-1.0, 1.0)])
@pytest.mark.parametrize(("inside", "across"), [(0.9, 0.1), (0.5, -0.05), (0.4, 0.4)])
def test_amplification_is_its_closed_form(inside: float, across: float, bounds: tuple[float, float], t: float) -> None:
    """Rows that are all equally far apart: the loss, and the force on every pair, follow from phi alone.

    loss = 2t c + log mean exp(-2t phi); the force on a pair is exp(2t (1 - phi)) times plain uniformity's, but for
    a factor that all pairs share.
    """
    similarity, block = _blocks(inside, across)
    x, s = _simplex(ITEMS), _rows_with(similarity)
    phi = similarity.clamp(*bounds)
    i, j = torch.triu_indices(ITEMS, ITEMS, 1)
    x.requires_grad_()
    value = uniformity(x, _pairs(ITEMS), t, "global", None, s, bounds)
    value.backward()
    c = -1 / (ITEMS - 1)
    assert value.item() == pytest.approx(2 * t * c + torch.exp(-2 * t * phi[i, j]).mean().log().item(), abs=1e-9)
    # The gradient of row i is the sum over j of force_ij x_j.
    share = torch.exp(2 * t * (1 - phi)).fill_diagonal_(0)
    force = 2 * t * share / share[i, j].sum()
    torch.testing.assert_close(x.grad, force @ x.detach(), rtol=1e-7, atol=1e-10)
    inner, outer = share[block & (share > 0)][0], share[~block][0]
    assert outer / inner == pytest.approx(math.exp(2 * t * (min(max(inside, bounds[0]), bounds[1]) - phi[0, -1])))


@pytest.mark.parametrize("reliability", [0.3, 1.0])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.1, 0.5)])
def test_phi_is_shrunk_after_it_is_bounded(bounds: tuple[float, float], reliability: float) -> None:
    """Value and gradients are those of exp(2t (x.x - reliability * clamp(s.s)))."""
    settings = Loss(min_sim=bounds[0], max_sim=bounds[1], phi="reliable")
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(9, width, generator=generator, dtype=torch.float64) for width in (6, 4)]
    found: list[Tensor] = []
    expected: list[Tensor] = []
    for mine, gradients in ((True, found), (False, expected)):
        x, s = (F.normalize(rows, dim=1).requires_grad_() for rows in raw)
        if mine:
            value = uniformity(x, _pairs(9), 2.0, "global", None, *calibrating(s, settings, reliability))
        else:
            i, j = torch.triu_indices(9, 9, 1)
            phi = reliability * (s[i] * s[j]).sum(1).clamp(*bounds)
            value = torch.exp(4 * ((x[i] * x[j]).sum(1) - phi)).mean().log()
        value.backward()
        gradients += [value.detach(), x.grad, s.grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)


def test_without_reliability_it_is_plain_uniformity() -> None:
    x, s = _simplex(7), F.normalize(torch.randn(7, 3, dtype=torch.float64), dim=1)
    settings = Loss(phi="reliable")
    value = uniformity(x, _pairs(7), 2.0, "global", None, *calibrating(s, settings, 0.0))
    assert value.item() == pytest.approx(ref.item_uniformity(x, s, 2.0, 0, 1, calibrated=False).item())


def test_phi_without_gradient_leaves_the_fusion_alone() -> None:
    s = F.normalize(torch.randn(7, 3, dtype=torch.float64), dim=1).requires_grad_()
    for reliability in (0.5, 1.0):
        values = []
        for wanted in (True, False):
            x = _simplex(7).requires_grad_()
            rows, bounds = calibrating(s, Loss(phi_gradient=wanted), reliability)
            assert rows is not None
            assert rows.requires_grad == wanted
            value = uniformity(x, _pairs(7), 2.0, "global", None, rows, bounds)
            value.backward()
            values.append((value.detach(), x.grad))
        torch.testing.assert_close(values[0], values[1])


def test_reliability_comes_from_the_prepared_folder(tmp_path: Path) -> None:
    manifest = read_manifest(prepare_small(tmp_path / "before"))
    assert trust(Loss(), manifest) == 1
    with pytest.raises(InputError, match=r"loss\.phi=reliable") as error:
        trust(Loss(phi="reliable"), manifest)
    assert error.value.code == "data.no-reliability"
    prepared = prepare_small(tmp_path, statistics={"reliability": 0.25})
    assert trust(Loss(phi="reliable"), read_manifest(prepared)) == 0.25
    terms = []
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        for phi in ("similarity", "reliable"):
            trainer = Trainer(small_settings(prepared, tmp_path / "run", loss={"phi": phi}), runtime)
            terms.append(trainer.step(next(iter(trainer.planner.plans(0, 0, 1)))))
    assert terms[0].user_uniformity == terms[1].user_uniformity
    assert terms[0].item_uniformity != terms[1].item_uniformity
