"""The loss compared with the formulas in float64, on one and on several ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cm3_dist.config.settings import Loss
from cm3_dist.graph.halo_exchange import Exchange, send_to_owners
from cm3_dist.kernels import pair_sum as pairs_kernel
from cm3_dist.loss.cm3_loss import cm3_loss
from cm3_dist.loss.constants import LossConstants
from cm3_dist.loss.uniformity import uniformity
from cm3_dist.pipeline.pair_weights import Pairs, PairWeight
from cm3_dist.pipeline.step_plan import StepPlan
from tests.support import reference as ref
from tests.support.ranks import run_ranks
from tests.support.tensor_bytes import TensorBytes

CLAMP = (0.0, 0.8)
WORLDS = (1, 2, 4)
PARTS, USER_STRIDE, ITEM_STRIDE, SIZE = 4, 6, 7, 60
SETTINGS = {
    "calibrated": Loss(gamma=0.9, max_sim=0.6),
    "plain": Loss(gamma=0.5, item_uniformity="plain", t=3.0),
    "none": Loss(item_uniformity="none"),
}


def _weigh(weight: Tensor, copies: Tensor) -> PairWeight:
    """Every row with those before it."""
    pairs = (weight * (weight.cumsum(0) - weight)).sum()
    return PairWeight(float(weight.sum()), float(pairs + copies.sum()), float(copies.sum()))


def _pairs(
    weight: Tensor,
    copies: Tensor,
    cuts: list[int] | None = None,
    first: int = 0,
    last: int | None = None,
    most: int = 0,
) -> Pairs:
    """Rows [first, last) of a batch whose rows weigh `weight`; parts lie between `cuts`."""
    cuts, last = cuts or [0, len(weight)], len(weight) if last is None else last
    parts = {begin: _weigh(weight[begin:end], copies[begin:end]) for begin, end in zip(cuts, cuts[1:], strict=False)}
    own = [cut for cut in cuts if first <= cut <= last]
    everywhere = _weigh(weight, copies)
    return Pairs(
        torch.arange(last - first),
        weight[first:last],
        [cut - first for cut in own],
        [parts[begin] for begin in own[:-1]],
        everywhere,
        everywhere.scalars(),
        sum(part.rows for part in parts.values() if part.pairs > 0),
        most or last - first,
    )


def _rows(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, s = (torch.randn(count, width, generator=generator, dtype=torch.float64) for width in (12, 5))
    return F.normalize(x, dim=1).to(dtype), F.normalize(s, dim=1).to(dtype)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("block", [(2, 3), (4, 2), (512, 2048)])
def test_multiplicities_stand_for_repeated_entries(
    calibrated: bool, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distinct rows with counts = the batch's entries one by one, pairs of copies included; value and gradients."""
    monkeypatch.setattr(pairs_kernel, "ROWS", block[0])
    monkeypatch.setattr(pairs_kernel, "COLUMNS", block[1])
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


def _values_and_gradients(group: dist.ProcessGroup) -> list[tuple[float, np.ndarray, np.ndarray | None]]:
    """Rows 0..31 in 4 parts, cut among the ranks; value and own rows' gradients for every scope, calibrated or not."""
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    cuts = [0, 5, 16, 17, 32]  # uneven, so that padding is exercised
    share = PARTS // world_size
    first, last = cuts[rank * share], cuts[(rank + 1) * share]
    most = max(cuts[(r + 1) * share] - cuts[r * share] for r in range(world_size))
    weight = torch.rand(32, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5
    found: list[Any] = []
    for scope in ("global", "local"):
        for calibrated in (True, False):
            x, s = (rows[first:last].clone().requires_grad_() for rows in _rows(32))
            pairs = _pairs(weight, weight / 3, cuts, first, last, most)
            rows_group = group if world_size > 1 else None
            value = uniformity(x, pairs, 2.0, scope, rows_group, s if calibrated else None, CLAMP)
            value.backward()
            assert x.grad is not None
            found.append((value.item(), x.grad.numpy(), s.grad.numpy() if s.grad is not None else None))
    return found


class Step:
    """A step's batch, and rows not yet normalised, over all parts: users [., 12], items [., 12], fused [., 5]."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        # Part 2's users have most of the positives, part 1's none.
        self.user = np.sort(rng.choice(np.r_[0:USER_STRIDE, 2 * USER_STRIDE : PARTS * USER_STRIDE], SIZE))
        self.item = rng.integers(0, PARTS * ITEM_STRIDE - 3, SIZE)  # any part's, with repeats
        self.degree = rng.integers(1, 20, PARTS * ITEM_STRIDE)
        generator = torch.Generator().manual_seed(4)
        shapes = ((PARTS * USER_STRIDE, 12), (PARTS * ITEM_STRIDE, 12), (PARTS * ITEM_STRIDE, 5))
        self.rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def expected(self, settings: Loss) -> tuple[list[float], list[np.ndarray]]:
        """The terms and their total; gradients of all rows."""
        rows = [r.clone().requires_grad_() for r in self.rows]
        users, items, fused = (ref.unit(r) for r in rows)
        aligned = ref.alignment(users[self.user], items[self.item])
        repelled = torch.zeros((), dtype=torch.float64)
        if settings.item_uniformity != "none":
            weight = 1 / torch.from_numpy(self.degree[self.item]).double()
            clamp, calibrated = (settings.min_sim, settings.max_sim), settings.item_uniformity == "calibrated"
            x, s = items[self.item], fused[self.item]
            repelled = ref.weighted_item_uniformity(x, s, weight, settings.t, *clamp, calibrated)
        spread = ref.user_uniformity(users[self.user], settings.t)
        total = ref.total(aligned, spread, repelled, float(settings.gamma))
        total.backward()
        gradients = [np.zeros(r.shape) if r.grad is None else r.grad.numpy() for r in rows]
        return [aligned.item(), spread.item(), repelled.item(), total.item()], gradients

    def found(self, settings: Loss, group: dist.ProcessGroup) -> tuple[list[float], list[np.ndarray]]:
        """The same on one rank: its share of alignment and total, and its own rows' gradients."""
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        users, items = PARTS * USER_STRIDE // world_size, PARTS * ITEM_STRIDE // world_size
        first_user, first_item = rank * users, rank * items
        own = self.user // users == rank
        user, item = self.user[own] - first_user, self.item[own] - first_item
        remote = (item < 0) | (item >= items)
        halo = np.unique(item[remote])
        place = np.where(remote, items + np.searchsorted(halo, item), item)
        occurring = np.bincount(self.user, minlength=PARTS * USER_STRIDE)
        drawn = np.bincount(self.item, minlength=len(self.degree))
        kept = np.flatnonzero(drawn[first_item : first_item + items])

        def pairs(count: np.ndarray, degree: np.ndarray, stride: int, first: int, size: int) -> Pairs:
            """From how often every row of all ranks was drawn; [first, first + size) are this rank's."""
            chosen = np.flatnonzero(count)
            count, degree = torch.from_numpy(count[chosen]).double(), torch.from_numpy(degree[chosen]).double()
            begin, end = np.searchsorted(chosen, [first, first + size]).tolist()
            cuts = np.searchsorted(chosen, np.arange(PARTS + 1) * stride).tolist()
            found = _pairs(count / degree, count * (count - 1) / 2 / degree**2, cuts, begin, end, most=size)
            return replace(found, index=torch.from_numpy(chosen[begin:end] - first))

        requests = send_to_owners(halo + first_item, items, group)
        send = torch.from_numpy(requests.table[:, 0] - first_item)
        rows_group = group if world_size > 1 else None
        plan = StepPlan(
            epoch=0,
            step=0,
            size=SIZE,
            inputs=cast(Any, None),
            users=torch.arange(users),
            items=torch.arange(items),
            positive_user=torch.from_numpy(user),
            positive_item=torch.from_numpy(place),
            positive_weight=torch.full((len(user),), 1 / SIZE, dtype=torch.float64),
            exchange=Exchange(send, requests.received, requests.asked, rows_group, "positive rows"),
            user_pairs=pairs(occurring, np.ones(len(occurring)), USER_STRIDE, first_user, users),
            item_pairs=pairs(drawn, self.degree, ITEM_STRIDE, first_item, items),
            item_inputs=torch.from_numpy(kept),
            input_share=1.0,
        )
        slices = (slice(first_user, first_user + users), *[slice(first_item, first_item + items)] * 2)
        rows = [r[part].clone().requires_grad_() for r, part in zip(self.rows, slices, strict=True)]
        fused = ref.unit(rows[2])[torch.from_numpy(kept)]
        terms = cm3_loss(rows[0], rows[1], fused, plan, settings, LossConstants(float(settings.gamma)), rows_group)
        terms.local.backward()
        gradients = [np.zeros(r.shape) if r.grad is None else r.grad.numpy() for r in rows]
        spread, repelled = terms.user_uniformity.item(), terms.item_uniformity.item()
        return [terms.alignment.item(), spread, repelled, terms.local.item()], gradients


def _on_ranks() -> dict[int, Any]:
    """Uniformity and whole steps on groups of 1, 2 and 4 ranks, by group size."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for world_size in WORLDS:
        group = dist.new_group(list(range(world_size)))
        if dist.get_rank() < world_size:
            steps = {name: Step().found(settings, group) for name, settings in SETTINGS.items()}
            found[world_size] = _values_and_gradients(group), steps
    dist.barrier()
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[int, Any]]:
    return run_ranks(_on_ranks, max(WORLDS))


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_equals_the_formulas_on_any_number_of_ranks(ranks: list[Any], name: str, world_size: int) -> None:
    terms, gradients = Step().expected(SETTINGS[name])
    found = [rank[world_size][1][name] for rank in ranks[:world_size]]
    half_gamma = float(SETTINGS[name].gamma) / 2
    for (aligned, spread, repelled, local), _ in found:
        assert [spread, repelled] == pytest.approx(terms[1:3], rel=1e-12)
        assert local == pytest.approx(aligned + half_gamma * (spread + repelled), rel=1e-12)
    assert sum(values[0] for values, _ in found) == pytest.approx(terms[0], rel=1e-12)
    for index, gradient in enumerate(gradients):
        own = np.concatenate([own[index] for _, own in found])
        np.testing.assert_allclose(own, gradient, rtol=1e-9, atol=1e-13)
    assert np.abs(gradients[2]).max() > (1e-4 if name == "calibrated" else -1)  # the fusion is pulled at, too


@pytest.mark.parametrize("world_size", [2, 4])
def test_value_and_gradient_do_not_depend_on_the_ranks(ranks: list[Any], world_size: int) -> None:
    for index, (value, grad_x, grad_s) in enumerate(ranks[0][1][0]):
        found = [rank[world_size][0][index] for rank in ranks[:world_size]]
        for own in found:
            assert own[0] == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(np.concatenate([own[1] for own in found]), grad_x, rtol=1e-10, atol=1e-14)
        if grad_s is not None:
            np.testing.assert_allclose(np.concatenate([own[2] for own in found]), grad_s, rtol=1e-10, atol=1e-14)


def _peak_bytes(rows: int) -> int:
    """Of the tensors that the loss of so many rows makes, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    x, s = (F.normalize(torch.randn(rows, w, generator=generator), dim=1).requires_grad_() for w in (16, 8))
    with TensorBytes() as made:
        uniformity(x, _pairs(torch.ones(rows), torch.zeros(rows)), 2.0, "global", None, s, (0.0, 1.0)).backward()
    return made.peak


def test_memory_grows_linearly_in_the_batch() -> None:
    small, large = _peak_bytes(2_500), _peak_bytes(10_000)
    assert large < 0.2 * 10_000**2 * 4  # of the matrix of all pairs
    assert large < 4 * small  # pairs computed at a time stay as many, rows and gradients are four times as many
