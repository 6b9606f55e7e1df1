from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cm3_dist import loss
from cm3_dist.loss import uniformity
from cm3_dist.plan import Pairs
from tests import reference as ref
from tests.ranks import run_ranks

CLAMP = (0.0, 0.8)


def _pairs(weight: Tensor, self_weight: Tensor, cuts: list[int] | None = None, most: int = 0) -> Pairs:
    count = len(weight)
    return Pairs(torch.arange(count), weight, self_weight, cuts or [0, count], most or count)


def _rows(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, s = (torch.randn(count, width, generator=generator, dtype=torch.float64) for width in (12, 5))
    return F.normalize(x, dim=1).to(dtype), F.normalize(s, dim=1).to(dtype)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("block", [27, 2**22])
def test_multiplicities_stand_for_repeated_entries(
    calibrated: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distinct rows with counts = the batch's entries one by one, pairs of copies included; value and gradients."""
    monkeypatch.setattr(loss, "PAIR_BLOCK", block)
    raw_x, raw_s = _rows(9)
    count = torch.tensor([1, 3, 1, 2, 1, 1, 4, 1, 1])
    grads = []
    for expand in (True, False):
        x, s = raw_x.clone().requires_grad_(), raw_s.clone().requires_grad_()
        unit_x, unit_s = F.normalize(x, dim=1), F.normalize(s, dim=1)
        if expand:
            entry = torch.repeat_interleave(torch.arange(9), count)
            value = ref.item_uniformity(unit_x[entry], unit_s[entry], 2.0, *CLAMP, calibrated)
        else:
            pairs = _pairs(count.double(), (count * (count - 1) / 2).double())
            value = uniformity(unit_x, pairs, 2.0, "global", None, unit_s if calibrated else None, CLAMP)
        value.backward()
        grads.append((value.detach(), x.grad, torch.zeros(1) if s.grad is None else s.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("t", [0.5, 2.0, 10.0])
def test_importance_weights(t: float) -> None:
    x, s = _rows(8)
    weight = torch.rand(8, dtype=torch.float64) * 5 + 0.1
    expected = ref.weighted_item_uniformity(x, s, weight, t, *CLAMP, calibrated=True)
    found = uniformity(x, _pairs(weight, torch.zeros(8)), t, "global", None, s, CLAMP)
    torch.testing.assert_close(found, expected)


def test_gradient_by_finite_differences() -> None:
    x, s = _rows(6)
    pairs = _pairs(torch.tensor([1.0, 2, 1, 1, 3, 1]), torch.tensor([0.0, 1, 0, 0, 3, 0]))

    def term(a: Tensor, b: Tensor) -> Tensor:
        return uniformity(F.normalize(a, dim=1), pairs, 2.0, "global", None, F.normalize(b, dim=1), CLAMP)

    assert torch.autograd.gradcheck(term, (x.requires_grad_(), s.requires_grad_()), eps=1e-6, atol=1e-7)


def test_local_scope_is_the_weighted_mean_of_the_parts() -> None:
    x, s = _rows(10)
    weight = torch.rand(10, dtype=torch.float64) + 0.5
    cuts = [0, 4, 5, 10]  # the middle part has one row, so no pair and no share
    x.requires_grad_()
    found = uniformity(x, _pairs(weight, torch.zeros(10), cuts), 2.0, "local", None, s, CLAMP)
    found.backward()
    y = x.detach().clone().requires_grad_()
    terms = [ref.weighted_item_uniformity(y[a:b], s[a:b], weight[a:b], 2.0, *CLAMP, True) for a, b in ((0, 4), (5, 10))]
    shares = torch.stack([weight[0:4].sum(), weight[5:10].sum()])
    expected = (shares / shares.sum() * torch.stack(terms)).sum()
    expected.backward()
    torch.testing.assert_close(found, expected)
    tangent = lambda g: g - (g * y.detach()).sum(1, keepdim=True) * y.detach()  # noqa: E731
    torch.testing.assert_close(tangent(x.grad), tangent(y.grad), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_fewer_than_two_rows_give_no_term(scope: str) -> None:
    x, s = _rows(1)
    x.requires_grad_()
    value = uniformity(x, _pairs(torch.ones(1), torch.zeros(1)), 2.0, scope, None, s, CLAMP)
    value.backward()
    assert value.item() == 0
    assert not x.grad.any()


def _shared(cases: list[tuple[str, bool]]) -> list[tuple[float, np.ndarray, np.ndarray | None]]:
    """Rows 0..31 in 4 parts, cut among the ranks; every rank's value and its own rows' gradients."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    cuts = [0, 5, 16, 17, 32]  # uneven, so that padding is exercised
    share = 4 // world_size
    first, last = cuts[rank * share], cuts[(rank + 1) * share]
    most = max(cuts[(r + 1) * share] - cuts[r * share] for r in range(world_size))
    own = [cut - first for cut in cuts[rank * share : (rank + 1) * share + 1]]
    weight = (torch.rand(32, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5)[first:last]
    found: list[Any] = []
    for scope, calibrated in cases:
        x, s = (rows[first:last].clone().requires_grad_() for rows in _rows(32))
        pairs = _pairs(weight, weight / 3, own, most)
        group = dist.group.WORLD if world_size > 1 else None
        value = uniformity(x, pairs, 2.0, scope, group, s if calibrated else None, CLAMP)
        value.backward()
        found.append((value.item(), x.grad.numpy(), s.grad.numpy() if calibrated else None))
    dist.destroy_process_group()
    return found


def test_value_and_gradient_do_not_depend_on_the_ranks() -> None:
    cases = [(scope, calibrated) for scope in ("global", "local") for calibrated in (True, False)]
    one = run_ranks(_shared, 1, cases)[0]
    for world_size in (2, 4):
        ranks = run_ranks(_shared, world_size, cases)
        for index, (value, grad_x, grad_s) in enumerate(one):
            for found in ranks:
                assert found[index][0] == pytest.approx(value, rel=1e-12)
            np.testing.assert_allclose(np.concatenate([r[index][1] for r in ranks]), grad_x, rtol=1e-10, atol=1e-14)
            if grad_s is not None:
                np.testing.assert_allclose(np.concatenate([r[index][2] for r in ranks]), grad_s, rtol=1e-10, atol=1e-14)


def _peak_mib(rows: int) -> float:
    import resource

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, s = (F.normalize(torch.randn(rows, w, generator=generator), dim=1).requires_grad_() for w in (64, 32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    uniformity(x, _pairs(torch.ones(rows), torch.zeros(rows)), 2.0, "global", None, s, (0.0, 1.0)).backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_memory_grows_linearly_in_the_batch() -> None:
    small, large = (run_ranks(_peak_mib, 1, rows)[0] for rows in (6_000, 24_000))
    pair_matrix = 24_000**2 * 4 / 2**20  # 2,197 MiB
    assert large < 0.1 * pair_matrix
    assert large < 5 * max(small, 20)
