"""Weights of interactions in training: a weight of 1 is none, only their ratios matter, and ranks agree."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.part_graph import PartGraph
from cm3_dist.graph.shard import load_shard
from cm3_dist.pipeline.batch_sampler import BatchSampler
from cm3_dist.training.trainer import Trainer
from partition.folder import layout
from partition.folder.manifest import read_manifest
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_dataset, small_settings, weighted_dataset

STEPS = 6
CASES: dict[str, dict[str, Any]] = {
    "exact": {"propagation": {"mode": "exact"}},
    "exact, uniform, gamma auto": {
        "propagation": {"mode": "exact"},
        "negatives": "uniform",
        "loss": {"gamma": "auto"},
    },
    "sampled": {"propagation": {"mode": "sampled", "fanouts": [3, 2, 2], "item_fanout": 2}},
    "sampled, local": {
        "propagation": {"mode": "sampled", "fanouts": [4]},
        "negatives": "local",
        "loss": {"scope": "local"},
    },
}
Seen = dict[str, tuple[list[list[float]], dict[str, float], float]]


def trained(prepared: Path, folder: Path) -> Seen:
    """Loss terms and gradient norms of every step, metrics after them, and gamma, for every case."""
    found = {}
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        for name, case in CASES.items():
            trainer = Trainer(small_settings(prepared, folder, **case), runtime)
            plans = trainer.planner.plans(0, 0, STEPS), trainer.planner.plans(1, 0, STEPS)
            losses = [trainer.step(plan).stacked().tolist() for some in plans for plan in some]
            assert ("weighted training interactions" in trainer.describe()) == trainer.manifest.weighted
            metrics = trainer.evaluator.rank(trainer.final_rows(), "validation")
            found[name] = losses, metrics, trainer.loss_constants.gamma
    return found


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("weighted"), weighted=True)


@pytest.fixture(scope="module")
def ones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = small_dataset()
    dataset = replace(dataset, weight=np.ones(len(dataset.user), np.float32))
    return prepare_small(tmp_path_factory.mktemp("ones"), dataset=dataset)


@pytest.fixture(scope="module")
def alone(weighted: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What one process saw of the weighted data set."""
    return trained(weighted, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_of_1_are_no_weights_to_the_bit(
    world_size: int, ones: Path, prepared_small: Path, tmp_path: Path
) -> None:
    assert read_manifest(ones).weighted
    if world_size == 1:
        assert trained(ones, tmp_path) == trained(prepared_small, tmp_path)
    else:
        found, expected = (run_ranks(trained, world_size, root, tmp_path) for root in (ones, prepared_small))
        assert found == expected


def test_weights_matter(alone: Seen, prepared_small: Path, tmp_path: Path) -> None:
    plain = trained(prepared_small, tmp_path)
    for case, (losses, _, _) in alone.items():
        terms, without = np.array(losses)[0, 1:4], np.array(plain[case][0])[0, 1:4]
        assert (np.abs(terms - without) > 1e-3).all(), case  # every term, from the first step on
    case = "exact, uniform, gamma auto"
    assert abs(alone[case][2] - plain[case][2]) > 1e-3


def test_only_the_ratios_of_weights_matter(alone: Seen, tmp_path: Path) -> None:
    dataset = weighted_dataset()
    assert dataset.weight is not None
    dataset = replace(dataset, weight=dataset.weight * np.float32(64))  # by a power of two nothing is rounded
    for case, (losses, metrics, _) in trained(prepare_small(tmp_path, dataset=dataset), tmp_path).items():
        if "auto" in case:
            np.testing.assert_allclose(losses, alone[case][0], rtol=1e-5)
        else:
            assert (losses, metrics) == alone[case][:2]


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_see_what_one_process_sees(world_size: int, weighted: Path, alone: Seen, tmp_path: Path) -> None:
    ranks = run_ranks(trained, world_size, weighted, tmp_path)
    for case, (losses, metrics, _) in alone.items():
        assert all(rank[case][:2] == ranks[0][case][:2] for rank in ranks)
        np.testing.assert_allclose(ranks[0][case][0], losses, rtol=1e-5, atol=1e-6)
        assert ranks[0][case][1] == pytest.approx(metrics, abs=5e-4)


def _positive_weights(prepared: Path, folder: Path) -> list[list[float]]:
    """Of every step of an epoch, in the order of the parts."""
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        trainer = Trainer(small_settings(prepared, folder, train={"batch_size": 100}), runtime)
        return [plan.positive_weight.tolist() for plan in trainer.planner.plans(0, 0, trainer.batches.steps)]


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_weights_of_the_positives_are_the_same_to_the_bit_on_any_number_of_ranks(
    world_size: int, weighted: Path, tmp_path: Path
) -> None:
    alone = _positive_weights(weighted, tmp_path)
    assert len(alone) > 3
    for number, weights in enumerate(alone):
        assert sum(weights) == pytest.approx(1, abs=1e-5), number
        assert max(weights) > 5 * min(weights)
    ranks = run_ranks(_positive_weights, world_size, weighted, tmp_path)
    assert [list(chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize("negatives", ["in_batch", "uniform", "local"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_batches_are_those_without_weights_and_carry_the_weights(
    negatives: Any, ranks: int, weighted: Path, prepared_small: Path
) -> None:
    dataset, manifest = weighted_dataset(), read_manifest(weighted)
    assert dataset.weight is not None
    users, items = (ids(weighted, kind) for kind in ("user", "item"))
    pairs = zip(dataset.user_ids.take(dataset.user).to_pylist(), dataset.item_ids.take(dataset.item).to_pylist())
    weight_of = dict(zip(pairs, dataset.weight, strict=True))
    seen = 0
    for rank in range(ranks):
        shards = [load_shard(root, rank, ranks) for root in (weighted, prepared_small)]
        samplers = [BatchSampler(shard, 100, negatives, seed=5) for shard in shards]
        for batch, plain in zip(samplers[0].epoch(3), samplers[1].epoch(3), strict=True):
            for name in ("user", "positive", "negative"):
                np.testing.assert_array_equal(getattr(batch, name), getattr(plain, name))
            assert plain.weight is None
            names = zip(users[batch.user + shards[0].first_user], items[batch.positive], strict=True)
            np.testing.assert_array_equal(batch.weight, [weight_of[pair] for pair in names])
            seen += len(batch.user)
    assert seen == manifest.train


def ids(root: Path, kind: str) -> np.ndarray:
    """[rows] external id of every global row; None for padding."""
    from cm3_dist.inference.id_map import IdMap

    manifest = read_manifest(root)
    stride = manifest.user_stride if kind == "user" else manifest.item_stride
    found = np.full(manifest.num_parts * stride, None, object)
    for part in range(manifest.num_parts):
        own = IdMap(root, manifest, kind).part_ids([part]).to_pylist()  # type: ignore[arg-type]
        found[part * stride :][: len(own)] = own
    return found


@pytest.mark.parametrize("relation", [layout.ITEM_TO_USER, layout.USER_TO_ITEM], ids=lambda relation: relation[1])
def test_sampled_sums_are_right_on_average(relation: tuple[str, str, str], weighted: Path) -> None:
    """Every edge's value over many draws: neighbours are drawn uniformly, and their weighted values are scaled up."""
    manifest, draws, fanout = read_manifest(weighted), 3000, 3
    graph = PartGraph(weighted, manifest, 1)
    edges = graph.edges(relation)
    first = manifest.user_stride if relation[2] == "user" else manifest.item_stride
    nodes = np.unique(edges.destination - first)
    place = {pair: n for n, pair in enumerate(zip(edges.destination - first, edges.source, strict=True))}
    total, squares = np.zeros(len(edges.value)), np.zeros(len(edges.value))
    for seed in range(draws):
        drawn = graph.sample(relation, nodes, fanout, seed)
        at = [place[pair] for pair in zip(drawn.destination, drawn.source, strict=True)]
        total[at] += drawn.value
        squares[at] += drawn.value.astype(np.float64) ** 2
    mean = total / draws
    error = np.sqrt(np.maximum(squares / draws - mean**2, 0) / draws)
    assert (np.abs(mean - edges.value) <= 5 * error + 1e-6 * edges.value).all()
    assert (error > 0).mean() > 0.5  # of most nodes not all neighbours are drawn
