"""`python -m jobs.run`: skips finished points, resumes the others, and gives every point GPUs of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.expand import expand
from jobs.run import environment, run, visible_gpus
from tests.support.paths import ROOT
from tests.support.small import prepare_small, small_settings
from tests.support.study import call


def write(folder: Path, tree: Any, name: str = "sweep.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_a_sweep_skips_what_is_done_and_resumes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared, into = prepare_small(tmp_path), tmp_path / "runs"
    for name in ("one", "two"):
        write(tmp_path, small_settings(prepared, tmp_path / "unused").plain(), f"{name}.yaml")
    path = write(tmp_path, {"base": ["one.yaml", "two.yaml"], "grid": {"train.seed": [1]}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert call(run, path, "--into", into, "--parallel", 2) == 0
    assert (into / "logs/one/seed=1.log").exists()
    assert f"Next: python -m jobs.report {into}\n" in capfd.readouterr().out
    first, second = into / "one/seed=1", into / "two/seed=1"
    done = json.loads((second / "metrics.json").read_text())
    command_before = (first / "command.txt").read_text()
    (second / "metrics.json").unlink()  # stopped after its last checkpoint
    assert call(expand, path, "--into", into, "--todo") == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1"
    assert call(expand, path, "--into", into, "--index", 0, "--unless-done") == 0
    assert capfd.readouterr().out == ""
    assert call(run, path, "--into", into) == 0
    assert "2 points, 1 done" in capfd.readouterr().out
    assert json.loads((second / "metrics.json").read_text())["test"] == done["test"]
    assert "--resume" in (second / "command.txt").read_text().splitlines()[1]
    assert (first / "command.txt").read_text() == command_before
    # A run with other settings is not taken for the sweep's.
    assert call(expand, path, "--into", into, "loss.gamma=0.5") == 2
    assert capfd.readouterr().err.startswith(f"error[sweep.other-run]: {first}: holds a run with loss.gamma=0.9")


def test_a_point_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"points": {"one": {"data.path": str(tmp_path / "gone")}, "two": {"data.path": "gone"}}})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert call(run, path, "--into", tmp_path / "runs", "--parallel", 2) == 1
    error = capfd.readouterr().err
    assert "2 of 2 points failed: " in error
    log = tmp_path / "runs" / "logs" / "one.log"
    assert f"one (exit 2, {log})" in error
    assert re.search(rf"^error.*: {tmp_path}/gone", log.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("gpus", "ranks", "visible"),
    [
        ("0 1 2 3", 1, ["0", "1", "2", "3", "0"]),  # more points than GPUs: they share
        ("0 1 2 3", 2, ["0,1", "2,3", "0,1", "2,3", "0,1"]),
        ("GPU-a GPU-b", 4, ["GPU-a,GPU-b"] * 5),  # the trainer says that there are too few
        ("0", 1, [None] * 5),
        ("", 1, [None] * 5),
    ],
)
def test_points_that_run_together_get_different_gpus(
    gpus: str, ranks: int, visible: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [environment(3, gpus.split(), slot, ranks) for slot in range(5)]
    assert [variables.get("CUDA_VISIBLE_DEVICES") for variables in found] == visible
    assert {variables["OMP_NUM_THREADS"] for variables in found} == {"3"}


def test_gpus_are_those_that_the_caller_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert visible_gpus() == ["5", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]
