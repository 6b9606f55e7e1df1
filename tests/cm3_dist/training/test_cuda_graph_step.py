"""Padded plans and fixed buffers do not change results. The CUDA graph itself is tested in test_gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cm3_dist.config.settings import Machine, Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.pipeline.padding import pad_rows
from cm3_dist.training.cuda_graph_step import WARM_UP, RecordedStep, can_record, slow_paths
from cm3_dist.training.trainer import Trainer
from tests.support.small import mask_features, prepare_small, small_dataset, small_settings

BATCH = 64


LEARNED = {"model": {"fusion": "concat"}}


@pytest.mark.parametrize(
    ("sections", "kind"),
    [({"negatives": "in_batch"}, ""), ({"negatives": "uniform"}, ""), (LEARNED, ""), ({}, "weighted"), ({}, "masked")],
    ids=["in_batch", "uniform", "learned", "weighted", "masked"],
)
def test_recorded_steps_equal_direct_steps(sections: dict[str, Any], kind: str, tmp_path: Path) -> None:
    """Two epochs, whose batches differ in size."""
    dataset = mask_features(small_dataset()) if kind == "masked" else None
    prepared = prepare_small(tmp_path, dataset=dataset, weighted=kind == "weighted")
    settings = small_settings(
        prepared, tmp_path / "run", propagation={"mode": "exact"}, train={"batch_size": BATCH}, **sections
    )
    recordings = []

    def record(action: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recordings.append(action)
        return action

    found: list[Any] = []
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        for recorded in (False, True):
            trainer = Trainer(settings, runtime)
            assert trainer.recorded is None
            if recorded:
                trainer.planner.padded = True
                trainer.recorded = RecordedStep(trainer._untimed_step, trainer.planner.resident, runtime.device, record)
            values = [
                trainer.step(plan).stacked()
                for epoch in (0, 1)
                for plan in trainer.planner.epoch(epoch, 0, trainer.batches.steps)
            ]
            tables = {name: value.clone() for name, value in trainer.model.tables.local_state().items()}
            found.append((torch.stack(values), tables, *trainer.final_rows()))
    assert 1 <= len(recordings) < (len(found[0][0]) - WARM_UP) / 2  # most steps replay
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-6)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, rtol=1e-3, atol=1e-5)
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("rows", "size"), [([0, 3, 9], 5), ([], 2), ([7, 8, 9], 3), ([0, 1, 2, 5], 6)])
def test_padding(rows: list[int], size: int) -> None:
    count = np.arange(1, len(rows) + 1)
    padded, counts = pad_rows(np.array(rows, np.int64), count, size)
    assert len(padded) == len(counts) == size
    assert np.array_equal(padded, np.unique(padded))
    assert {row: c for row, c in zip(padded.tolist(), counts.tolist(), strict=True) if c} == dict(
        zip(rows, count.tolist(), strict=True)
    )


def test_only_exact_steps_of_one_gpu_are_recorded(tmp_path: Path) -> None:
    settings = small_settings(prepare_small(tmp_path), tmp_path / "run")
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        assert not can_record(settings, "exact", runtime)


@pytest.mark.parametrize(
    ("sections", "mode", "world_size", "off"),
    [
        ({}, "exact", 1, []),
        ({}, "exact", 2, ["CUDA graph off: 2 ranks"]),
        ({}, "sampled", 1, ["CUDA graph off: sampled propagation"]),
        ({"machine": {"record": False}}, "exact", 1, ["CUDA graph off: machine.record=false"]),
        ({"loss": {"scope": "local"}}, "exact", 4, ["CUDA graph off: 4 ranks, loss.scope=local"]),
        ({"tables": {"name": "adam"}}, "exact", 1, ["CUDA graph off: tables.name=adam", "in-place table updates off"]),
        (
            {"tables": {"weight_decay": 1e-6}},
            "sampled",
            1,
            ["CUDA graph off: sampled propagation, tables.weight_decay=1e-06", "in-place table updates off"],
        ),
    ],
)
def test_what_is_off_on_a_gpu_is_named(sections: dict[str, Any], mode: str, world_size: int, off: list[str]) -> None:
    settings = Settings.model_validate(sections)
    lines = slow_paths(settings, mode, "cuda", world_size)
    assert [line[: len(start)] for line, start in zip(lines, off, strict=True)] == off
    assert slow_paths(settings, mode, "cpu", world_size) == []
