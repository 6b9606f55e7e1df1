from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm3_dist.capacity.dry_run import dry_final_rows, dry_step
from cm3_dist.capacity.from_folder import drawn_steps, scenario_from_folder
from cm3_dist.capacity.hardware import Hardware
from cm3_dist.capacity.traffic_model import evaluation_bytes, step_bytes
from cm3_dist.config.settings import Settings
from tests.support.observe import observed_traffic
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_dataset, small_settings

STEPS = 2
CASES: dict[str, dict[str, Any]] = {
    "exact": {"propagation": {"mode": "exact", "item_item_layers": 2}},
    "exact, uniform negatives": {"propagation": {"mode": "exact"}, "negatives": "uniform", "loss": {"scope": "local"}},
    "plain": {
        "propagation": {"mode": "exact", "user_item_layers": 1},
        "loss": {"item_uniformity": "plain"},
    },
    "sampled": {"propagation": {"mode": "sampled", "fanouts": [3]}, "model": {"dim": 8, "item_ids": True}},
    "sampled, few items": {
        "propagation": {"mode": "sampled", "fanouts": [2, 4], "user_item_layers": 2, "item_fanout": 2},
        "negatives": "local",
    },
}


@pytest.mark.parametrize(
    ("world_size", "users", "items"), [(2, 120, 60), pytest.param(4, 600, 250, marks=pytest.mark.slow)]
)
def test_the_bytes_of_a_step_are_predicted_exactly(tmp_path: Path, world_size: int, users: int, items: int) -> None:
    prepared = prepare_small(tmp_path, dataset=small_dataset(users, items))
    settings = [small_settings(prepared, tmp_path / "run", **case) for case in CASES.values()]
    weighted = prepare_small(tmp_path / "weighted", dataset=small_dataset(users, items), weighted=True)
    settings.append(small_settings(weighted, tmp_path / "run", **CASES["sampled"]))
    seen = run_ranks(observed_traffic, world_size, settings, STEPS)
    for number, (name, setting) in enumerate(zip([*CASES, "weighted"], settings, strict=True)):
        predicted = predict(setting, world_size)
        for rank in range(world_size):
            for counted, expected in zip(seen[rank][number], predicted[rank], strict=True):
                assert counted.pop("on the wire") == sum(expected.values()), name
                expected.pop("table lookups", None)
                assert counted == {kind: sent for kind, sent in expected.items() if sent}, name


def predict(settings: Settings, world_size: int) -> list[list[dict[str, float]]]:
    """By rank: of every step, then of an evaluation."""
    hardware = Hardware.of(world_size, "cpu", 100, {})
    scenario = scenario_from_folder(settings, settings.data.path, hardware, None)
    steps = drawn_steps(scenario, STEPS)
    return [
        [step_bytes(scenario, step[rank], dry_step(scenario, load, step[rank])) for step in steps]
        + [evaluation_bytes(scenario, load, dry_final_rows(scenario, load))]
        for rank, load in enumerate(scenario.loads)
    ]
