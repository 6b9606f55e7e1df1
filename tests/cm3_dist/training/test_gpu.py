"""Tests that need a GPU; skipped if there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.training.cuda_graph_step import WARM_UP
from cm3_dist.training.trainer import Trainer
from tests.support.small import prepare_small, small_settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False"),
]


def _losses(prepared: Path, run: Path, steps: int, watch: bool = False, **sections: Any) -> list[list[float]]:
    """Loss terms of the first steps; `watch`: fail if a step waits for the device after warm-up and recording."""
    settings = small_settings(prepared, run, **{**sections, "model": {"dim": 16, **sections.get("model", {})}})
    with distributed(settings.machine) as runtime:
        trainer = Trainer(settings, runtime)
        values = []
        for number, plan in enumerate(trainer.planner.epoch(0, 0, min(steps, trainer.batches.steps))):
            if watch and number > WARM_UP:
                torch.cuda.set_sync_debug_mode("error")
            try:
                values.append(trainer.step(plan).stacked())
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return torch.stack(values).tolist()


@pytest.mark.parametrize("mode", ["exact", "sampled"])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adam"])
@pytest.mark.parametrize("record", [True, False])
def test_a_gpu_equals_the_cpu(mode: str, kernels: str, tables: str, record: bool, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    sections: dict[str, Any] = {"propagation": {"mode": mode, "fanouts": [3]}, "train": {"batch_size": 64}}
    machine = {"device": "cuda", "kernels": kernels, "record": record}
    gpu = _losses(prepared, tmp_path / "gpu", 10, machine=machine, tables={"name": tables}, **sections)
    if tables == "adam":  # the CPU has none to compare with: the loss has to fall
        assert gpu[-1][0] < gpu[0][0]
        return
    cpu = _losses(prepared, tmp_path / "cpu", 10, machine=Machine(device="cpu", threads=1).model_dump(), **sections)
    torch.testing.assert_close(torch.tensor(gpu), torch.tensor(cpu), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["exact", "sampled"])
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_a_gpu_equals_the_cpu_on_weighted_interactions(mode: str, kernels: str, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path, weighted=True)
    sections: dict[str, Any] = {"propagation": {"mode": mode, "fanouts": [3]}, "train": {"batch_size": 64}}
    gpu = _losses(prepared, tmp_path / "gpu", 10, machine={"device": "cuda", "kernels": kernels}, **sections)
    cpu = _losses(prepared, tmp_path / "cpu", 10, machine=Machine(device="cpu", threads=1).model_dump(), **sections)
    torch.testing.assert_close(torch.tensor(gpu), torch.tensor(cpu), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("record", [True, False])
def test_no_step_waits_for_the_device(kernels: str, record: bool, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    sections = {"propagation": {"mode": "exact"}, "train": {"batch_size": 64}}
    machine = {"device": "cuda", "kernels": kernels, "record": record}
    assert len(_losses(prepared, tmp_path / "run", 8, watch=True, machine=machine, **sections)) == 8


@pytest.mark.parametrize("fusion", ["bezier", "concat"])
@pytest.mark.parametrize("record", [True, False])
def test_additional_weights_are_recorded_too(fusion: str, record: bool, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    sections: dict[str, Any] = {
        "propagation": {"mode": "exact"},
        "train": {"batch_size": 64},
        "model": {"fusion": fusion},
    }
    machine = {"device": "cuda", "record": record}
    gpu = _losses(prepared, tmp_path / "gpu", 8, watch=True, machine=machine, **sections)
    cpu = _losses(prepared, tmp_path / "cpu", 8, machine=Machine(device="cpu", threads=1).model_dump(), **sections)
    torch.testing.assert_close(torch.tensor(gpu), torch.tensor(cpu), rtol=1e-3, atol=1e-4)
