"""In-place updates of local rows equal FBGEMM's fused optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cm3_dist.config.settings import Machine, TableOptimizer
from cm3_dist.distributed.runtime import distributed
from cm3_dist.model.local_table import can_update
from cm3_dist.training.trainer import Trainer
from partition.errors import InputError
from tests.support.small import prepare_small, small_settings

OPTIMIZERS = [("rowwise_adagrad", 0.1), ("adagrad", 0.1), ("sgd", 0.5)]


@pytest.mark.parametrize("mode", ["exact", "sampled"])
@pytest.mark.parametrize(("name", "lr"), OPTIMIZERS)
def test_local_updates_equal_fbgemm(name: str, lr: float, mode: str, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    settings = small_settings(
        prepared,
        tmp_path / "run",
        propagation={"mode": mode, "fanouts": [2]},
        model={"item_ids": True},
        tables={"name": name, "lr": lr},
    )
    found: list[dict[str, Any]] = []
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        for local in (True, False):
            trainer = Trainer(settings, runtime)
            assert set(trainer.model.tables._local) == {"user_channels", "user_mixing", "item_ids"}
            if not local:
                trainer.model.tables._local.clear()  # then every lookup is TorchRec's
            before = {key: value.clone() for key, value in trainer.model.tables.local_state().items()}
            steps = min(trainer.batches.steps, 5)
            for plan in trainer.planner.epoch(0, 0, steps):
                trainer.step(plan)
            found.append({key: value.clone() for key, value in trainer.model.tables.local_state().items()})
            assert all(not torch.equal(before[key], value) for key, value in found[-1].items())
    for key, value in found[0].items():
        torch.testing.assert_close(
            value, found[1][key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_weight_decay_pulls_rows_to_zero(tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    norms = []
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        for decay in (0.0, 10.0):
            settings = small_settings(prepared, tmp_path / "run", tables={"lr": 0.01, "weight_decay": decay})
            trainer = Trainer(settings, runtime)
            for plan in trainer.planner.epoch(0, 0, 5):
                trainer.step(plan)
            norms.append(trainer.model.tables.local_state()["user_channels"].norm().item())
    assert norms[1] < 0.98 * norms[0]


@pytest.mark.parametrize("name", ["adagrad", "sgd"])
def test_weight_decay_is_refused_where_fbgemm_has_none(name: str, tmp_path: Path) -> None:
    settings = small_settings(prepare_small(tmp_path), tmp_path / "run", tables={"name": name, "weight_decay": 1e-6})
    with distributed(Machine(device="cpu", threads=1)) as runtime, pytest.raises(InputError) as error:
        Trainer(settings, runtime)
    assert error.value.code == "tables.optimizer"


def test_which_optimizers_are_left_to_fbgemm() -> None:
    assert can_update(TableOptimizer())
    assert not can_update(TableOptimizer(weight_decay=1e-6))
    assert not can_update(TableOptimizer(name="adam"))
