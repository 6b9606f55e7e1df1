"""Sweep files: their points, what is refused; and every sweep and job of the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cm3_dist.config.loading import load_settings
from jobs.sweep import read_sweep
from partition.errors import InputError
from tests.support.paths import ROOT

SWEEPS = sorted((ROOT / "jobs" / "sweeps").glob("*.yaml"))
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))


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


def test_several_bases_share_every_point(tmp_path: Path) -> None:
    for name, gamma in (("small", 0.3), ("large", 0.4)):
        write(tmp_path, {"loss": {"gamma": gamma}, "data": {"path": f"prepared/{name}"}}, f"{name}.yaml")
    points = {"full": {}, "cold": {"data.path": "prepared/{base}_cold"}}
    sweep = {"base": ["small.yaml", "large.yaml"], "points": points, "grid": {"train.seed": [1, 2]}}
    found = read_sweep(write(tmp_path, sweep), Path("runs/x"))
    assert [point.name for point in found] == [
        f"{base}/{variant},seed={seed}"
        for base in ("small", "large")
        for variant in ("full", "cold")
        for seed in (1, 2)
    ]
    assert [point.settings.loss.gamma for point in found] == [0.3] * 4 + [0.4] * 4
    assert str(found[6].settings.data.path) == "prepared/large_cold"
    assert found[6].folder == Path("runs/x/large/cold,seed=1")
    alone = read_sweep(write(tmp_path, {**sweep, "base": ["small.yaml"]}), Path("runs/x"))
    assert [point.name for point in alone] == ["full,seed=1", "full,seed=2", "cold,seed=1", "cold,seed=2"]
    grid = {"base": ["small.yaml", "large.yaml"], "grid": {"data.path": ["prepared/{base}_1"]}}
    found = read_sweep(write(tmp_path, grid))
    assert [str(point.folder) for point in found] == ["runs/sweep/small/path=small_1", "runs/sweep/large/path=large_1"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_committed_sweeps_expand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    points = read_sweep(path.relative_to(ROOT))
    assert len({point.folder for point in points}) == len(points)
    assert len({json.dumps(_without_run(point.settings.plain())) for point in points}) == len(points)
    for point in points:
        assert point.config in [job.relative_to(ROOT) for job in JOBS]
    comment = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
    assert [int(count) for count in re.findall(r"(\d+) points", comment)] == [len(points)]


def _without_run(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: section for name, section in settings.items() if name != "run"}


def test_the_papers_grid_sets_the_weight_decay_of_both_optimizers() -> None:
    points = read_sweep(ROOT / "jobs" / "sweeps" / "paper_grid.yaml")
    assert points[1].settings.tables.weight_decay == points[1].settings.dense.weight_decay == 1e-6


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_committed_jobs_load_and_have_run_folders_of_their_own(path: Path) -> None:
    settings = load_settings(path, [])
    others = [load_settings(other, []).run.dir for other in JOBS if other != path]
    assert settings.run.dir not in others


@pytest.mark.parametrize(
    ("tree", "code"),
    [
        ("train: {epochs: 3}", "sweep.file"),
        ("just words", "sweep.file"),
        ({"grid": {"train.seed": [1]}, "repeat": 3}, "sweep.key"),
        ({"grid": {"train.seed": 1}}, "sweep.grid"),
        ({"grid": [1]}, "sweep.grid"),
        ({"grid": {"train.seed": [1, 1]}}, "sweep.names"),
        ({"points": {"a b": {}}}, "sweep.point-name"),
        ({"points": ["a"]}, "sweep.points"),
        ({"points": {"a": 3}}, "sweep.settings"),
        ({"points": {"a": {}}, "base": 3}, "sweep.base"),
        ({"points": {"a": {}}, "base": ["base.yaml", "base.yaml"]}, "sweep.names"),
        ({"points": {"a": {}}, "base": ["base.yaml", None]}, "sweep.base"),
    ],
)
def test_wrong_sweeps_are_refused(tmp_path: Path, tree: Any, code: str) -> None:
    write(tmp_path, {}, "base.yaml")
    path = write(tmp_path, tree)
    with pytest.raises(InputError) as refused:
        read_sweep(path)
    assert refused.value.code == code
    assert str(refused.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("tree", "part"),
    [
        ("grid: [", "sweep.yaml:1: "),
        ({"grid": {"train.sed": [1]}}, "sweep.yaml: point sed=1: "),
        ({"points": {"a": "gone.yaml"}}, "gone.yaml: "),
    ],
)
def test_what_loading_refuses_is_placed(tmp_path: Path, tree: Any, part: str) -> None:
    with pytest.raises(InputError) as refused:
        read_sweep(write(tmp_path, tree))
    assert part in str(refused.value)
