"""What must not depend on the number of ranks, and what must not exist on any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.timing import peak_mib, resident_mib
from cm3_dist.distributed.runtime import distributed
from partition.options import CutMethod
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_dataset, small_settings

STEPS = 20
CASES: dict[str, dict[str, Any]] = {
    "exact, in_batch": {"negatives": "in_batch", "propagation": {"mode": "exact"}},
    "exact, uniform, item ids, weight decay": {
        "negatives": "uniform",
        "propagation": {"mode": "exact"},
        "model": {"item_ids": True},
        "tables": {"name": "rowwise_adagrad", "weight_decay": 1e-4},
    },
    "exact, local negatives, local scope": {
        "negatives": "local",
        "propagation": {"mode": "exact"},
        "loss": {"scope": "local"},
    },
    "exact, inverse degree, adagrad": {
        "propagation": {"mode": "exact", "item_item_layers": 2},
        "loss": {"in_batch_correction": "inverse_degree"},
        "tables": {"name": "adagrad"},
    },
    "exact, plain uniformity, sgd, no item graph": {
        "propagation": {"mode": "exact", "item_item_layers": 0},
        "loss": {"item_uniformity": "plain"},
        "tables": {"name": "sgd", "lr": 1.0},
    },
    "exact, concatenation, gamma auto": {
        "propagation": {"mode": "exact"},
        "model": {"fusion": "concat"},
        "loss": {"gamma": "auto"},
        "dense": {"lr": 0.01},
    },
    "sampled": {"propagation": {"mode": "sampled", "fanouts": [3, 2, 2], "item_fanout": 2}},
    "sampled, uniform, no prefetch": {
        "negatives": "uniform",
        "propagation": {"mode": "sampled", "fanouts": [4]},
        "model": {"item_ids": True},
        "machine": {"prefetch": 0},
    },
    "sampled, all neighbours": {"negatives": "in_batch", "propagation": {"mode": "sampled", "fanouts": [-1]}},
}


def _trajectories(prepared: Path, folder: Path) -> dict[str, tuple[list[list[float]], dict[str, float]]]:
    """Loss terms and gradient norms of every step, and validation metrics after them, for every case."""
    from cm3_dist.config.settings import Machine
    from cm3_dist.training.trainer import Trainer

    found = {}
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        for name, case in CASES.items():
            trainer = Trainer(small_settings(prepared, folder, **case), runtime)
            losses: list[list[float]] = []
            epoch = 0
            while len(losses) < STEPS:
                for plan in trainer.planner.epoch(epoch, 0, min(trainer.batches.steps, STEPS - len(losses))):
                    losses.append(trainer.step(plan).stacked().tolist())
                epoch += 1
            found[name] = losses, trainer.evaluator.rank(trainer.final_rows(), "validation")
    return found


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("trajectories")
    prepared = prepare_small(folder)
    found = {}
    for world_size in (1, 2, 4):
        ranks = run_ranks(_trajectories, world_size, prepared, folder)
        for other in ranks[1:]:
            for name, (losses, metrics) in other.items():
                assert metrics == ranks[0][name][1]
                # Losses are sums of all ranks, in one order: equal to the bit on all of them.
                assert losses == ranks[0][name][0], name
        found[world_size] = ranks[0]
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_walk_the_same_trajectory(trajectories: dict[int, Any], case: str, world_size: int) -> None:
    one, many = trajectories[1][case], trajectories[world_size][case]
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5, atol=1e-6)
    for name, value in one[1].items():
        assert abs(many[1][name] - value) <= 5e-4, name


def test_losses_fall_and_differ_between_cases(trajectories: dict[int, Any]) -> None:
    for name, (losses, _) in trajectories[1].items():
        assert np.mean([row[0] for row in losses[-3:]]) < np.mean([row[0] for row in losses[:3]]) - 0.05, name
    assert trajectories[1]["exact, in_batch"] != trajectories[1]["sampled"]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_sampling_all_neighbours_is_exact(trajectories: dict[int, Any], world_size: int) -> None:
    exact, sampled = trajectories[world_size]["exact, in_batch"], trajectories[world_size]["sampled, all neighbours"]
    np.testing.assert_allclose(sampled[0], exact[0], rtol=1e-5, atol=1e-6)


def _rows_held(prepared: Path, folder: Path) -> tuple[dict[int, int], int, float]:
    """After some steps and an evaluation: most rows of a live array by its width, most elements, peak MiB added."""
    import gc

    from cm3_dist.config.settings import Machine
    from cm3_dist.training.trainer import Trainer

    with distributed(Machine(device="cpu", threads=1)) as runtime:
        before = resident_mib(reset_peak=True)
        settings = small_settings(
            prepared,
            folder,
            model={"dim": 32},
            train={"batch_size": 64},
            propagation={"mode": "exact"},
            evaluate={"user_block": 256, "item_block": 1024},
        )
        trainer = Trainer(settings, runtime)
        for plan in trainer.planner.epoch(0, 0, 3):
            trainer.step(plan)
        trainer.evaluator.rank(trainer.final_rows(), "validation")
        added = peak_mib() - before
        shapes = [tuple(thing.shape) for thing in gc.get_objects() if type(thing) in ARRAYS and len(thing.shape) > 1]
        rows: dict[int, int] = {}
        for shape in shapes:
            rows[shape[-1]] = max(rows.get(shape[-1], 0), int(np.prod(shape[:-1])))
        return rows, max(int(np.prod(shape)) for shape in shapes), added


ARRAYS = (torch.Tensor, torch.nn.Parameter, np.ndarray, np.memmap)


def test_no_rank_holds_a_whole_table_or_feature_matrix(tmp_path: Path) -> None:
    users, items, width, feature = 40_000, 20_000, 3 * 32, 250
    dataset = small_dataset(users, items, degree=4, spread=0.002, widths=(feature, 200))
    prepared = prepare_small(tmp_path, dataset=dataset, method=CutMethod.METIS)
    rows, _, alone = run_ranks(_rows_held, 1, prepared, tmp_path)[0]
    assert rows[width] >= users  # the measurement sees a whole table and a whole feature matrix where there is one
    assert rows[feature] >= items
    for rows, elements, added in run_ranks(_rows_held, 4, prepared, tmp_path):
        assert rows[width] < 0.4 * users  # its quarter and the halo
        assert rows[feature] < 0.3 * items
        assert elements < 0.3 * items * feature  # the largest array there is: nothing like N x N
        assert added < 0.5 * alone
