"""The dense reference compared with closed forms, symmetries and library functions that it does not use."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support import reference as ref


def _unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_slerp_on_a_known_arc() -> None:
    angle = torch.tensor([0.3, 1.2, 3.0], dtype=torch.float64)
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    b = torch.stack([angle.cos(), angle.sin()], 1)
    lam = torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(ref.slerp(a, b, lam), torch.stack([(lam * angle).cos(), (lam * angle).sin()], 1))


def test_bezier_ends_stays_on_the_sphere_and_reverses() -> None:
    points, lam = _unit(4, 9, 6), torch.linspace(0, 1, 9, dtype=torch.float64)
    for m in range(1, 5):
        curve = ref.bezier(points[:m], lam)
        torch.testing.assert_close(curve.norm(dim=1), torch.ones(9, dtype=torch.float64))
        torch.testing.assert_close(curve[0], points[0, 0])
        torch.testing.assert_close(curve[-1], points[m - 1, -1])
        torch.testing.assert_close(curve, ref.bezier(points[:m].flip(0), 1 - lam))
    assert not torch.allclose(ref.bezier(points, lam), ref.bezier(points[[0, 2, 1, 3]], lam))
    same = points[:1].expand(4, 9, 6)
    torch.testing.assert_close(ref.bezier(same, lam), points[0])


def test_propagation_sums_the_layers_of_a_symmetric_operator() -> None:
    a = (torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    a[2] = 0  # a user without interactions keeps its ego row
    adjacency = ref.normalised_adjacency(a)
    torch.testing.assert_close(adjacency, adjacency.T)
    assert float(torch.linalg.eigvalsh(adjacency).max()) == pytest.approx(1)
    user, item = int(a.nonzero()[0, 0]), int(a.nonzero()[0, 1])
    assert float(adjacency[user, 5 + item]) == pytest.approx(1 / math.sqrt(float(a[user].sum() * a[:, item].sum())))
    e_u, e_i = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    rows = torch.cat([e_u, e_i])
    horner = rows
    for _ in range(3):
        horner = rows + adjacency @ horner
    r_u, r_i = ref.propagate(a, e_u, e_i, 3)
    torch.testing.assert_close(torch.cat([r_u, r_i]), horner)
    torch.testing.assert_close(r_u[2], e_u[2])


def test_item_graph_rows_sum_to_one_and_hold_the_item_itself() -> None:
    features = [torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)]
    s = ref.item_graph(features, [0.1, 0.9], 4)
    torch.testing.assert_close(s.sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(s.diagonal(), torch.full((12,), 0.25, dtype=torch.float64))
    r = torch.randn(12, 6, dtype=torch.float64)
    torch.testing.assert_close(ref.item_rows(r, s, 2), r + s @ (s @ r))
    assert ref.item_rows(r, s, 0) is r


def test_mixing_with_equal_logits_divides_by_the_channels() -> None:
    r = torch.randn(3, 12, dtype=torch.float64)
    torch.testing.assert_close(ref.user_rows(r, torch.ones(3, 4, dtype=torch.float64)), r / 4)
    one = torch.tensor([[0.0, 500.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        ref.user_rows(r[:1], one)[0], torch.cat([r[0, :0], 0 * r[0, :4], r[0, 4:8], 0 * r[0, 8:]])
    )


def test_uniformity_is_the_mean_over_torch_pdist() -> None:
    x, s = _unit(40, 6), _unit(40, 4, seed=1)
    x[7] = x[3]  # a repeated entry is an entry
    pdist = torch.pdist(x).square().mul(-2).exp().mean().log()
    torch.testing.assert_close(ref.user_uniformity(x, 2.0), pdist)
    torch.testing.assert_close(ref.item_uniformity(x, s, 2.0, 0.0, 1.0, calibrated=False), pdist)
    # phi = 1 everywhere is plain uniformity, phi = 0 multiplies every pair by e^{2t}.
    torch.testing.assert_close(ref.item_uniformity(x, s, 2.0, 1.0, 1.0, calibrated=True), pdist)
    torch.testing.assert_close(ref.item_uniformity(x, s, 2.0, 0.0, 0.0, calibrated=True), pdist + 4)


def test_calibrated_uniformity_is_two_gram_matrices() -> None:
    x, s = _unit(30, 6), _unit(30, 4, seed=1)
    gram = torch.exp(2 * 1.5 * (x @ x.T - (s @ s.T).clamp(-0.2, 0.6)))
    expected = ((gram.sum() - gram.trace()) / (30 * 29)).log()
    torch.testing.assert_close(ref.item_uniformity(x, 3 * s, 1.5, -0.2, 0.6, calibrated=True), expected)


def test_weights_of_one_and_integer_weights_repeat_items() -> None:
    x, s = _unit(12, 6), _unit(12, 4, seed=1)
    settings = (2.0, 0.0, 1.0, True)
    plain = ref.item_uniformity(x, s, *settings)
    torch.testing.assert_close(ref.weighted_item_uniformity(x, s, torch.full((12,), 3.0), *settings), plain)
    # Twice the first item: the pairs of its copies with each other are the only ones that the weights leave out.
    w = torch.ones(12, dtype=torch.float64)
    w[0] = 2
    repeated = ref.item_uniformity(torch.cat([x, x[:1]]), torch.cat([s, s[:1]]), *settings)
    weighted = ref.weighted_item_uniformity(x, s, w, *settings)
    mass = float(13 * 12 / 2)
    torch.testing.assert_close(repeated.exp() * mass, weighted.exp() * (mass - 1) + 1)


def test_horvitz_thompson_weights_estimate_the_mean_over_all_items() -> None:
    rng = torch.Generator().manual_seed(5)
    items, popular = 120, 60
    degree = torch.full((items,), 3.0, dtype=torch.float64)
    degree[:popular] = 15
    x, s = _unit(items, 6), _unit(items, 4, seed=1)
    x[:popular] = F.normalize(x[:popular] + 1, dim=1)  # popular items lie together
    train = int(degree.sum())
    size = train // 5
    positives = torch.repeat_interleave(torch.arange(items), degree.long())
    settings = (2.0, 0.0, 1.0, True)
    plain, corrected = [], []
    for _ in range(40):
        drawn = positives[torch.rand(train, generator=rng) < size / train]
        distinct = drawn.unique()
        weight = 1 / ref.inclusion_probability(degree[distinct], size, train)
        corrected.append(ref.weighted_item_uniformity(x[distinct], s[distinct], weight, *settings))
        plain.append(ref.item_uniformity(x[drawn], s[drawn], *settings))
    wanted = float(ref.item_uniformity(x, s, *settings))
    error = torch.stack(corrected) - wanted
    assert abs(float(error.mean())) < 3 * float(error.std()) / 40**0.5 < 0.06
    assert abs(float(torch.stack(plain).mean()) - wanted) > 0.2


def test_encoder_shapes_and_total() -> None:
    rng = torch.Generator().manual_seed(0)
    features, weights = [], []
    for width in (5, 3):
        features.append(torch.randn(7, width, generator=rng, dtype=torch.float64))
        sizes = [(16, width), (16,), (4, 16), (4, width), (4,)]
        weights.append(ref.Modality(*[torch.randn(size, generator=rng, dtype=torch.float64) for size in sizes]))
    channels, fused = ref.encode(features, weights, torch.full((7,), 0.5, dtype=torch.float64))
    hidden = F.leaky_relu(F.linear(features[1], weights[1].w1, weights[1].b1))
    torch.testing.assert_close(channels[:, 1], F.linear(hidden, weights[1].w2))
    rows = ref.ego(torch.cat([channels, fused.unsqueeze(1)], 1))
    assert rows.shape == (7, 12)
    torch.testing.assert_close(rows.norm(dim=1), torch.full((7,), math.sqrt(3), dtype=torch.float64))
    torch.testing.assert_close(rows[:, 8:], fused)
    one, two, three = torch.tensor(1.0), torch.tensor(-2.0), torch.tensor(-0.5)
    assert float(ref.total(one, two, three, 0.8)) == pytest.approx(1 + 0.4 * -2.5)
    assert float(ref.alignment(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.0, 1], [1, 0]]))) == 1


def test_weights_repeat_interactions() -> None:
    """An interaction of weight 3 is three parallel edges, and three positives of the alignment term."""
    xu, xi, w = _unit(5, 6), _unit(5, 6, seed=1), torch.tensor([1.0, 3, 1, 2, 1], dtype=torch.float64)
    repeated = torch.repeat_interleave(torch.arange(5), w.long())
    torch.testing.assert_close(ref.weighted_alignment(xu, xi, w), ref.alignment(xu[repeated], xi[repeated]))
    torch.testing.assert_close(ref.weighted_alignment(xu, xi, 7 * torch.ones(5)), ref.alignment(xu, xi))
    a = torch.tensor([[0.5, 2.0], [0.0, 4.0]], dtype=torch.float64)
    adjacency = ref.normalised_adjacency(a)
    assert float(adjacency[0, 3]) == pytest.approx(2 / math.sqrt(2.5 * 6))
    torch.testing.assert_close(adjacency, ref.normalised_adjacency(8 * a))


def test_ranking_and_metrics_by_hand() -> None:
    assert ref.ranking([1.0, 3.0, 3.0, 2.0], [0, 1, 2], 2) == [1, 2]
    found = ref.metrics([4, 1, 7], {1, 7, 9}, 3)
    assert found["recall@3"] == pytest.approx(2 / 3)
    assert found["precision@3"] == pytest.approx(2 / 3)
    assert found["map@3"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert found["ndcg@3"] == pytest.approx((1 / math.log2(3) + 1 / 2) / ideal)
