"""Complete runs: the files they write, resuming without a difference, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cm3_dist.config.settings import Machine, Settings
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.runtime import distributed
from cm3_dist.train import main
from cm3_dist.training.loop import run
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_settings


def _run(settings: Settings, resume: bool = False) -> dict[str, Any]:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        return run(settings, runtime, resume)


def _runs(settings: list[tuple[Settings, bool]]) -> list[dict[str, Any]]:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        return [run(one, runtime, resume) for one, resume in settings]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("data"))


def _losses(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_a_run_writes_its_folder(prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    content = _run(small_settings(prepared, folder, train={"epochs": 3}))
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(content))
    names = {f"{m}@{k}" for m in ("recall", "ndcg", "precision", "map") for k in (5, 20)}
    assert set(content["validation"]) == set(content["test"]) == names
    assert content["world_size"] == 1
    assert content["test"]["recall@20"] > content["baselines"]["random"]["recall@20"] + 0.1
    steps = _losses(folder)
    assert [row["step"] for row in steps] == list(range(content["steps"]))
    for row in steps:
        total = row["alignment"] + 0.9 / 2 * (row["user_uniformity"] + row["item_uniformity"])
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    for name in ("settings.yaml", "versions.json", "plan.txt", "command.txt", "evaluations.jsonl"):
        assert (folder / name).stat().st_size, name
    assert list((folder / "tensorboard").glob("events*"))
    shown = capsys.readouterr().out
    assert "user_channels" in shown  # the sharding plan
    assert "tensorboard --logdir" in shown
    assert "popularity" in shown


@pytest.mark.slow
def test_resuming_on_other_ranks_equals_an_uninterrupted_run(prepared: Path, tmp_path: Path) -> None:
    def settings(name: str, **train: int) -> Settings:
        return small_settings(prepared, tmp_path / name, train={"batch_size": 100, **train})

    whole, cut = settings("whole", epochs=4), settings("cut", epochs=4, max_steps=7)
    one = run_ranks(_runs, 1, [(whole, False), (cut, False)])[0]
    two = run_ranks(_runs, 2, [(settings("cut", epochs=3), True)])[0]
    three = run_ranks(_runs, 1, [(settings("cut", epochs=4), True)])[0]
    assert one[1]["steps"] == 7
    assert (two[0]["world_size"], three[0]["world_size"]) == (2, 1)
    for name, value in one[0]["test"].items():
        assert three[0]["test"][name] == pytest.approx(value, abs=1e-6)
    before, after = _losses(tmp_path / "whole"), _losses(tmp_path / "cut")
    assert [row["step"] for row in after] == [row["step"] for row in before]
    for a, b in zip(before, after, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5, abs=1e-6)


def test_early_stopping_tests_the_best_epoch(prepared: Path, tmp_path: Path) -> None:
    # Learning rates that ruin the model after a good start: validation falls and patience is exhausted.
    settings = small_settings(
        prepared, tmp_path / "run", train={"epochs": 50, "patience": 2}, dense={"lr": 0.5}, tables={"lr": 5.0}
    )
    content = _run(settings)
    assert content["epochs"] < 50
    assert content["best_epoch"] <= content["epochs"] - 3
    lines = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    validation = [row["recall@20"] for row in lines if row["split"] == "validation"]
    assert max(validation) == validation[content["best_epoch"]] == content["validation"]["recall@20"]


def test_any_number_of_modalities(tmp_path: Path) -> None:
    from tests.support.small import small_dataset

    for modalities in (1, 3, 4):
        prepared = prepare_small(tmp_path / str(modalities), dataset=small_dataset(modalities=modalities))
        content = _run(small_settings(prepared, tmp_path / f"run-{modalities}", train={"epochs": 1}))
        assert content["validation"]["recall@20"] > content["baselines"]["random"]["recall@20"]


@pytest.mark.parametrize(
    ("change", "start"),
    [
        (["train.epochs=3"], "error[run.taken]: "),
        (["tables.name=adam", "run.dir={tmp}/other"], "error[tables.optimizer]: "),
        (["data.path={tmp}/nowhere", "run.dir={tmp}/other"], "error"),
        (["machine.device=cuda", "run.dir={tmp}/other"], "error"),
        (["run.dir={tmp}/other", "--resume"], "error[checkpoint.none]: "),
        (["loss.gamma=0.5", "--resume"], "error[resume.setting]: "),
        (["train.seed=8", "--resume"], "error[resume.setting]: "),
    ],
)
def test_refusals_are_one_line_and_exit_2(
    finished: Path,
    prepared: Path,
    tmp_path: Path,
    change: list[str],
    start: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ["--config", str(finished / "settings.yaml"), *(text.format(tmp=tmp_path) for text in change)]
    before = sorted(path.name for path in tmp_path.rglob("*"))
    monkeypatch.setattr("sys.argv", ["cm3_dist.train", *settings])
    with pytest.raises(SystemExit) as end:
        entry_point(main)()
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(start)
    assert "\n" not in error
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    _run(small_settings(prepared, folder, train={"epochs": 1}))
    return folder


def _fails_on_rank_1(prepared: Path, folder: Path) -> None:
    from cm3_dist.training.trainer import Trainer

    with distributed(Machine(device="cpu", threads=1, timeout=30)) as runtime:
        trainer = Trainer(small_settings(prepared, folder), runtime)
        for plan in trainer.planner.epoch(0, 0, 3):
            if runtime.rank == 1 and plan.step == 1:
                raise ValueError("rank 1 fell over")
            trainer.step(plan)


def test_a_crash_of_one_rank_ends_all_with_its_message(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="rank 1 fell over"):
        run_ranks(_fails_on_rank_1, 2, prepared, tmp_path)


def _wrong_world_size(prepared: Path, folder: Path) -> str:
    from cm3_dist.training.trainer import Trainer
    from partition.errors import InputError

    with distributed(Machine(device="cpu", threads=1)) as runtime:
        try:
            Trainer(small_settings(prepared, folder), runtime)
        except InputError as error:
            return error.line
    return ""


def test_world_size_must_divide_the_parts(prepared: Path, tmp_path: Path) -> None:
    for message in run_ranks(_wrong_world_size, 3, prepared, tmp_path):
        assert message.startswith("error[data.world-size]: ")
        assert "1, 2, 4" in message
