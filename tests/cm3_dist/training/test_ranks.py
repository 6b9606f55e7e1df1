"""Losses under less usual settings do not depend on the number of ranks; no rank holds a whole table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3_dist.distributed.runtime import distributed
from partition.options import CutMethod
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_dataset, small_settings

STEPS = 10
CASES: dict[str, dict[str, Any]] = {
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
}


Trajectories = dict[str, tuple[list[list[float]], dict[str, float]]]


def _trajectories(prepared: Path, folder: Path) -> Trajectories:
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
def trajectories(prepared_small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trajectories, Trajectories]:
    """Of one process and of 4 ranks; 2 ranks are in test_trainer.py."""
    prepared, folder = prepared_small, tmp_path_factory.mktemp("trajectories")
    alone, ranks = _trajectories(prepared, folder), run_ranks(_trajectories, 4, prepared, folder)
    assert ranks[1:] == ranks[:1] * 3  # losses are sums of all ranks, in one order: equal to the bit on all of them
    return alone, ranks[0]


@pytest.mark.parametrize("case", CASES)
def test_ranks_walk_the_same_trajectory(trajectories: tuple[Trajectories, Trajectories], case: str) -> None:
    (losses, metrics), (losses_of_ranks, metrics_of_ranks) = (found[case] for found in trajectories)
    np.testing.assert_allclose(losses_of_ranks, losses, rtol=1e-5, atol=1e-6)
    assert metrics_of_ranks == pytest.approx(metrics, abs=5e-4)


def test_losses_differ_between_cases(trajectories: tuple[Trajectories, Trajectories]) -> None:
    assert len({tuple(losses[-1]) for losses, _ in trajectories[0].values()}) == len(CASES)


def _rows_held(prepared: Path, folder: Path) -> tuple[dict[int, int], int, int]:
    """After some steps and an evaluation, of live arrays: most rows by width, most elements of one, bytes of all."""
    import gc

    from cm3_dist.config.settings import Machine
    from cm3_dist.training.trainer import Trainer

    with distributed(Machine(device="cpu", threads=1)) as runtime:
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
        arrays = [thing for thing in gc.get_objects() if type(thing) in ARRAYS]
        shapes = [tuple(array.shape) for array in arrays if len(array.shape) > 1]
        rows: dict[int, int] = {}
        for shape in shapes:
            rows[shape[-1]] = max(rows.get(shape[-1], 0), int(np.prod(shape[:-1])))
        return rows, max(int(np.prod(shape)) for shape in shapes), _bytes(arrays)


def _bytes(arrays: list[Any]) -> int:
    """Of the memory behind them, counting memory that several share once."""
    memory = {}
    for array in arrays:
        if isinstance(array, torch.Tensor):
            storage = array.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
        else:
            while isinstance(array.base, np.ndarray):
                array = array.base
            memory[array.ctypes.data] = array.nbytes
    return sum(memory.values())


ARRAYS = (torch.Tensor, torch.nn.Parameter, np.ndarray, np.memmap)


def test_no_rank_holds_a_whole_table_or_feature_matrix(tmp_path: Path) -> None:
    users, items, width, feature = 8_000, 4_000, 3 * 32, 250
    dataset = small_dataset(users, items, degree=4, spread=0.002, widths=(feature, 200))
    prepared = prepare_small(tmp_path, dataset=dataset, method=CutMethod.STREAM)
    rows, _, alone = run_ranks(_rows_held, 1, prepared, tmp_path)[0]
    assert rows[width] >= users  # the measurement sees a whole table and a whole feature matrix where there is one
    assert rows[feature] >= items
    for rows, elements, held in run_ranks(_rows_held, 4, prepared, tmp_path):
        assert rows[width] < 0.4 * users  # its quarter and the halo
        assert rows[feature] < 0.3 * items
        assert elements < 0.3 * items * feature  # the largest array there is: nothing like N x N
        assert held < 0.5 * alone
