"""Sweep files: their points, what they refuse; a sweep without Slurm skips what is done and resumes the rest."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cm3_dist.config.loading import load_settings
from jobs.command import command_line
from jobs.expand import expand, ranges
from jobs.run import run
from jobs.sweep import read_sweep
from partition.errors import InputError
from tests.support.paths import ROOT
from tests.support.small import prepare_small, small_settings

SWEEPS = sorted((ROOT / "jobs" / "sweeps").glob("*.yaml"))
JOBS = sorted(path for path in (ROOT / "jobs").rglob("*.yaml") if path not in SWEEPS)


def call(monkeypatch: pytest.MonkeyPatch, main: Any, *arguments: Any) -> int:
    """A command of jobs/ in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["jobs", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        command_line(main)
    return int(stopped.value.code or 0)


def write(folder: Path, tree: Any, name: str = "sweep.yaml") -> Path:
    path = folder / name
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
    return path


def test_points_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"train": {"epochs": 9}, "loss": {"gamma": 0.3}}, "base.yaml")
    write(tmp_path, {"negatives": "uniform"}, "other.yaml")
    sweep = {
        "base": "base.yaml",
        "settings": {"train.epochs": 5, "model": {"dim": 8}},
        "points": {"full": {}, "plain": {"loss.item_uniformity": "plain"}, "other": "other.yaml"},
        "grid": {
            "train.seed": [2, 1],
            "dense.lr": [0.1],
            "tables.lr": [1],
            "dense.weight_decay, tables.weight_decay": [0],
        },
    }
    points = read_sweep(write(tmp_path, sweep), Path("runs/x"), ["train.patience=3"])
    rest = "dense.lr=0.1,tables.lr=1,weight_decay=0"
    assert [point.name for point in points] == [
        f"{name},seed={seed},{rest}" for name in ("full", "plain", "other") for seed in (2, 1)
    ]
    assert [point.index for point in points] == list(range(6))
    assert [point.settings.train.seed for point in points] == [2, 1] * 3
    assert {point.settings.train.epochs for point in points} == {5}
    assert {point.settings.train.patience for point in points} == {3}
    assert [point.settings.loss.gamma for point in points] == [0.3] * 4 + [0.9] * 2
    assert [point.settings.negatives for point in points] == ["in_batch"] * 4 + ["uniform"] * 2
    assert [point.settings.loss.item_uniformity for point in points][::2] == ["calibrated", "plain", "calibrated"]
    assert points[3].folder == Path("runs/x") / points[3].name
    for point in points:  # the printed arguments are the settings
        config, *overrides = point.arguments()[1:]
        assert load_settings(Path(config), overrides) == point.settings


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_committed_sweeps_expand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    points = read_sweep(path.relative_to(ROOT))
    assert len({point.folder for point in points}) == len(points)
    for point in points:
        assert point.config is not None
        assert ".." not in point.config.parts


def test_the_papers_grid_has_48_points(monkeypatch: pytest.MonkeyPatch) -> None:
    points = read_sweep(ROOT / "jobs" / "sweeps" / "paper_grid.yaml")
    assert len(points) == 48
    assert len({json.dumps(point.settings.plain()) for point in points}) == 48
    assert points[1].settings.tables.weight_decay == points[1].settings.dense.weight_decay == 1e-6


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_committed_jobs_load_and_have_run_folders_of_their_own(path: Path) -> None:
    settings = load_settings(path, [])
    others = [load_settings(other, []).run.dir for other in JOBS if other != path]
    assert settings.run.dir not in others


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("grid: [", "sweep.yaml:1: not valid YAML"),
        ("train: {epochs: 3}", "not a sweep file"),
        ("just words", "not a sweep file"),
        ({"grid": {"train.seed": [1]}, "repeat": 3}, "unknown key 'repeat'"),
        (
            {"grid": {"train.sed": [1]}},
            "point sed=1: command line: unknown setting 'train.sed'; did you mean 'train.seed'?",
        ),
        ({"grid": {"train.seed": 1}}, "grid: train.seed: expected a list"),
        ({"grid": [1]}, "grid: expected settings with lists"),
        ({"grid": {"train.seed": [1, 1]}}, "two points are named 'seed=1'"),
        ({"points": {"a b": {}}}, "points: 'a b': a name has letters"),
        ({"points": ["a"]}, "points: expected names"),
        ({"points": {"a": 3}}, "points: a: expected settings"),
        ({"points": {"a": "gone.yaml"}}, "gone.yaml: no such settings file"),
        ({"points": {"a": {}}, "base": 3}, "expected the name of a job file"),
    ],
)
def test_wrong_sweeps_are_refused_by_name(tmp_path: Path, tree: Any, message: str) -> None:
    path = write(tmp_path, tree)
    with pytest.raises(InputError) as refused:
        read_sweep(path)
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)


def test_what_expand_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"grid": {"train.seed": [1, 2, 3], "data.path": ["a b"]}})
    into = tmp_path / "runs"
    assert call(monkeypatch, expand, path, "--count") == 0
    assert capsys.readouterr().out == "3\n"
    assert call(monkeypatch, expand, path, "--index", 1, "--into", into, "train.epochs=4") == 0
    words = shlex.split(capsys.readouterr().out)
    assert words == ["train.seed=2", "data.path=a b", "train.epochs=4", f"run.dir={into}/seed=2,path=a_b"]
    assert call(monkeypatch, expand, path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [[str(n), f"seed={n + 1},path=a_b", "new"] for n in range(3)]
    for arguments in (["--index", 3], ["--index", -1], ["--count", "--todo"], ["--unless-done"], ["nonsense"]):
        assert call(monkeypatch, expand, path, *arguments) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""


def test_a_sweep_skips_what_is_done_and_resumes_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared, into = prepare_small(tmp_path), tmp_path / "runs"
    write(tmp_path, small_settings(prepared, tmp_path / "unused").plain(), "base.yaml")
    path = write(tmp_path, {"base": "base.yaml", "grid": {"train.seed": [1, 2]}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert call(monkeypatch, run, path, "--into", into, "--parallel", 2) == 0
    first, second = into / "seed=1", into / "seed=2"
    done = json.loads((second / "metrics.json").read_text())
    command_before = (first / "command.txt").read_text()
    (second / "metrics.json").unlink()  # stopped after its last checkpoint
    assert call(monkeypatch, expand, path, "--into", into, "--todo") == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1"
    assert call(monkeypatch, expand, path, "--into", into, "--index", 0, "--unless-done") == 0
    assert capfd.readouterr().out == ""
    assert call(monkeypatch, run, path, "--into", into) == 0
    assert "2 points, 1 done" in capfd.readouterr().out
    assert json.loads((second / "metrics.json").read_text())["test"] == done["test"]
    assert "--resume" in (second / "command.txt").read_text().splitlines()[1]
    assert (first / "command.txt").read_text() == command_before
    # Other settings in the same folders are not taken for the same sweep.
    assert call(monkeypatch, expand, path, "--into", into, "loss.gamma=0.5") == 2
    assert "holds a run with loss.gamma=0.9, the sweep asks for 0.5" in capfd.readouterr().err


def test_a_point_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, {"points": {"one": {"data.path": str(tmp_path / "gone")}, "two": {"data.path": "gone"}}})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert call(monkeypatch, run, path, "--into", tmp_path / "runs", "--parallel", 2) == 1
    error = capfd.readouterr().err
    assert "2 of 2 points failed: " in error
    log = tmp_path / "runs" / "logs" / "one.log"
    assert f"one (exit 2, {log})" in error
    assert "not a prepared folder" in log.read_text()
