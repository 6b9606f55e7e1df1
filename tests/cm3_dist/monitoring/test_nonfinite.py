"""A step that is not finite ends the run by name, or is left out and counted; nothing of it reaches a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3_dist.checkpoint.manager import CheckpointManager
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import NotFiniteError
from cm3_dist.monitoring.nonfinite import NonFiniteSteps
from cm3_dist.training import trainer as module
from cm3_dist.training.loop import run
from cm3_dist.training.progress import Progress
from cm3_dist.training.trainer import Trainer
from cm3_dist.training.trainer_state import save
from partition.errors import InputError
from tests.support.quoted import assert_quoted
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_settings

MACHINE = Machine(device="cpu", threads=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("data"))


def spoil(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], bool]) -> None:
    """The loss of those steps, which are counted from the first that the process does, is not a number."""
    loss, count = vars(module)["cm3_loss"], [0]

    def spoilt(*args: Any) -> Any:
        terms = loss(*args)
        count[0] += 1
        if at(count[0] - 1):
            bad = torch.nan
            terms = dataclasses.replace(terms, local=terms.local * bad, item_uniformity=terms.item_uniformity * bad)
        return terms

    monkeypatch.setattr(module, "cm3_loss", spoilt)


@pytest.mark.parametrize("mode", ["exact", "sampled"])
def test_a_skipped_step_changes_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    spoil(monkeypatch, lambda step: step == 2)
    settings = small_settings(
        prepared, tmp_path, train={"on_nan": "skip", "batch_size": 60}, propagation={"mode": mode, "fanouts": [3]}
    )
    with distributed(MACHINE) as runtime:
        trainer = Trainer(settings, runtime)
        states = []
        for plan in trainer.planner.epoch(0, 0, 4):
            values = trainer.step(plan).stacked()
            state = {**trainer.model.tables.local_state(), **trainer.dense.state()}
            states.append({name: value.clone() for name, value in state.items()})
            assert torch.isfinite(values).all() == (len(states) != 3)
    assert all(torch.equal(value, states[1][name]) for name, value in states[2].items())
    assert not torch.equal(states[3]["user_channels"], states[2]["user_channels"])
    assert all(torch.isfinite(value).all() for value in states[3].values())


def test_a_run_that_skips_ends_and_counts(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, lambda step: step in (1, 4))
    settings = small_settings(prepared, tmp_path / "run", train={"on_nan": "skip", "batch_size": 100})
    with distributed(MACHINE) as runtime:
        content = run(settings, runtime)
    assert content["skipped_steps"] == 2
    lines = [json.loads(line) for line in (tmp_path / "run/steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("skipped")] == [1, 4]
    assert lines[1]["loss"] is None
    assert all(line["loss"] is not None for line in lines if not line.get("skipped"))
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: step")]
    assert len(warned) == 2
    assert "step 1 (epoch 0): item_uniformity is nan; left out, 1 of at most 10 steps; lower dense.lr" in warned[0]
    assert_quoted(warned[0])


def test_too_many_are_not_skipped(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda step: step >= 5)
    settings = small_settings(
        prepared, tmp_path / "run", train={"on_nan": "skip", "batch_size": 60, "max_skipped": 2, "epochs": 3}
    )
    with (
        distributed(MACHINE) as runtime,
        pytest.raises(NotFiniteError, match=r"^step 7 .* after train.max_skipped=2 such steps; the last checkpoint"),
    ):
        run(settings, runtime)


def test_the_rank_is_named() -> None:
    values = [1.0, 1.0, 1.0, 1.0, float("inf"), 1.0]
    for origin, said in ((1, "the encoder's gradient is inf on rank 1;"), (-2, "the encoder's gradient is inf;")):
        with pytest.raises(NotFiniteError, match=said):
            NonFiniteSteps(small_settings(Path(), Path())).skip(7, 0, [*values, origin])


def test_a_state_that_is_not_finite_is_not_saved(prepared: Path, tmp_path: Path) -> None:
    settings = small_settings(prepared, tmp_path / "run")
    with distributed(MACHINE) as runtime:
        trainer, checkpoints = Trainer(settings, runtime), CheckpointManager(tmp_path, 2, runtime)
        save(trainer, checkpoints, Progress(step=1), best=False)
        trainer.model.tables.channels[3, 2] = torch.inf
        with pytest.raises(
            InputError, match=r"^2 steps: part-00000/user_channels of rank 0 is not finite, so nothing is"
        ):
            save(trainer, checkpoints, Progress(step=2), best=False)
        assert checkpoints.newest() == tmp_path / "step-00000001"


def _spoilt_on_rank_1(prepared: Path, folder: Path) -> str:
    update = Trainer._update

    def spoilt(self: Trainer, *args: Any) -> Any:
        if self.runtime.rank == 1:
            self.dense.gradient[3] = torch.nan
        return update(self, *args)

    with distributed(MACHINE) as runtime, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", spoilt)
        with pytest.raises(NotFiniteError) as caught:
            run(small_settings(prepared, folder), runtime)
        return str(caught.value)


@pytest.mark.slow
def test_ranks_agree_whose_gradient_it_was(prepared: Path, tmp_path: Path) -> None:
    said = run_ranks(_spoilt_on_rank_1, 2, prepared, tmp_path / "run")
    assert said[0] == said[1]
    assert said[0].startswith("step 0 (epoch 0): the encoder's gradient is nan on rank 1; the last checkpoint is kept")
