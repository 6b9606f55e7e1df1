"""Items that lack modalities: training is the same on ranks; masks that mark nothing change no bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from tests.support.ranks import run_ranks
from tests.support.small import mask_features, prepare_small, small_dataset, small_settings

STEPS = 6
CASES: dict[str, dict[str, Any]] = {
    "exact": {"propagation": {"mode": "exact"}, "loss": {"phi_gradient": False}},
    "exact, slerps": {"propagation": {"mode": "exact"}, "model": {"fusion": "slerp", "item_ids": True}},
    "sampled": {"propagation": {"mode": "sampled", "fanouts": [3, 2, 2], "item_fanout": 2}},
}
Trajectories = dict[str, tuple[list[list[float]], dict[str, float]]]


def trajectories(prepared: Path, folder: Path) -> Trajectories:
    """Loss terms and gradient norms of every step, and validation metrics after them, for every case."""
    from cm3_dist.training.trainer import Trainer

    found = {}
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        for name, case in CASES.items():
            trainer = Trainer(small_settings(prepared, folder, train={"batch_size": 128}, **case), runtime)
            losses = [trainer.step(plan).stacked().tolist() for plan in trainer.planner.epoch(0, 0, STEPS)]
            found[name] = losses, trainer.evaluator.rank(trainer.final_rows(), "validation")
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trajectories, Trajectories]:
    """Of one process and of 2 ranks."""
    folder = tmp_path_factory.mktemp("masked")
    prepared = prepare_small(folder, dataset=mask_features(small_dataset(modalities=3)))
    return trajectories(prepared, folder), run_ranks(trajectories, 2, prepared, folder)[0]


@pytest.mark.parametrize("case", CASES)
def test_ranks_walk_the_same_trajectory(found: tuple[Trajectories, Trajectories], case: str) -> None:
    (losses, metrics), (losses_of_ranks, metrics_of_ranks) = (one[case] for one in found)
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses_of_ranks, losses, rtol=1e-5, atol=1e-6)
    assert metrics_of_ranks == pytest.approx(metrics, abs=5e-4)


def test_masks_that_mark_nothing_change_no_bit(tmp_path: Path) -> None:
    plain = small_dataset(modalities=3)
    nothing = np.zeros(len(plain.item_ids), bool)
    marked = replace(plain, features={name: replace(f, missing=nothing) for name, f in plain.features.items()})
    of_plain, of_marked = (
        trajectories(prepare_small(tmp_path / name, dataset=dataset), tmp_path / name)
        for name, dataset in (("plain", plain), ("marked", marked))
    )
    assert of_marked == of_plain
