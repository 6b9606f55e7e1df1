"""`--resume auto` resumes from the newest undamaged checkpoint and names those that it skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cm3_dist.config.settings import Machine, Settings
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.training.loop import run
from cm3_dist.training.progress import Resume
from partition.errors import InputError
from tests.support.small import prepare_small, small_dataset, small_settings


@pytest.fixture(scope="module")
def alone() -> Iterator[Runtime]:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def ruined(tmp_path_factory: pytest.TempPathFactory, alone: Runtime) -> tuple[Settings, dict[str, Any]]:
    """A run whose rates ruin the model after a good start, so that its best checkpoint is not among the newest."""
    folder = tmp_path_factory.mktemp("ruined")
    rates: dict[str, Any] = {"dense": {"lr": 0.5}, "tables": {"lr": 5.0}}
    settings = small_settings(prepare_small(folder), folder / "run", train={"epochs": 50, "patience": 3}, **rates)
    return settings, run(settings, alone)


def _damage(path: Path) -> None:
    with (path / "__0_0.distcp").open("r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))


def _again(settings: Settings, folder: Path, damaged: list[str]) -> tuple[Settings, list[Path]]:
    """A copy of the run with some checkpoints damaged."""
    shutil.copytree(settings.run.dir, folder)
    (folder / "metrics.json").unlink()
    paths = [folder / "checkpoints" / name for name in damaged]
    for path in paths:
        _damage(path)
    return settings.model_copy(update={"run": settings.run.model_copy(update={"dir": folder})}), paths


def test_damaged_checkpoints_are_skipped(
    ruined: tuple[Settings, dict[str, Any]], alone: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, whole = ruined
    kept = sorted(path.name for path in (settings.run.dir / "checkpoints").glob("step-*"))
    assert len(kept) == 3  # the best one, and the newest two
    again, damaged = _again(settings, tmp_path / "run", kept[-1:])
    with pytest.raises(InputError, match=r"__0_0\.distcp") as error:
        run(again, alone, Resume.NEWEST)
    assert error.value.code == "checkpoint.torn"
    capsys.readouterr()
    after = run(again, alone, Resume.AUTO)
    assert capsys.readouterr().err.startswith(f"passed over: {damaged[0]}/__0_0.distcp: differs")
    for name in ("validation", "test", "best_epoch", "steps"):
        assert after[name] == whole[name]
    lines = [
        [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]
        for folder in (settings.run.dir, again.run.dir)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("name", ["SHA256SUMS", "progress.json", "latest"])
def test_any_damaged_file_can_be_skipped(
    ruined: tuple[Settings, dict[str, Any]], alone: Runtime, tmp_path: Path, name: str
) -> None:
    """Even if no file of the current checkpoint can be read."""
    settings, whole = ruined
    again, _ = _again(settings, tmp_path / "run", [])
    checkpoints = again.run.dir / "checkpoints"
    newest = sorted(checkpoints.glob("step-*"))[-1]
    (checkpoints if name == "latest" else newest).joinpath(name).write_bytes(b"\xff")
    with pytest.raises(InputError, match=name):
        run(again, alone, Resume.NEWEST)
    after = run(again, alone, Resume.AUTO)
    assert {key: after[key] for key in ("test", "best_epoch", "steps")} == {
        key: whole[key] for key in ("test", "best_epoch", "steps")
    }
    assert (checkpoints / "latest").read_text().strip() == newest.name


def test_a_lost_best_checkpoint_is_reported_and_replaced(
    ruined: tuple[Settings, dict[str, Any]], alone: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, whole = ruined
    best = (settings.run.dir / "checkpoints/best").read_text().strip()
    again, _ = _again(settings, tmp_path / "run", [best])
    after = run(again, alone, Resume.AUTO)
    assert "whose best checkpoint is lost" in capsys.readouterr().err
    assert after["best_epoch"] > whole["best_epoch"]
    assert (again.run.dir / "checkpoints/best").read_text().strip() != best


def test_without_a_checkpoint_the_run_starts_from_the_beginning(
    ruined: tuple[Settings, dict[str, Any]], alone: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, whole = ruined
    kept = sorted(path.name for path in (settings.run.dir / "checkpoints").glob("step-*"))
    again, _ = _again(settings, tmp_path / "run", kept)
    after = run(again, alone, Resume.AUTO)
    error = capsys.readouterr().err
    assert error.count("passed over: ") == 3
    assert "no whole checkpoint, starting from the beginning" in error
    assert after["test"] == whole["test"]


def test_a_checkpoint_may_be_older_than_a_setting(tmp_path: Path) -> None:
    from cm3_dist.checkpoint.same_run import check_same_run
    from partition.folder.manifest import read_manifest

    prepared = prepare_small(tmp_path)
    manifest, settings = read_manifest(prepared), small_settings(prepared, tmp_path / "run")
    saved = settings.plain()
    del saved["model"]["fusion"], saved["loss"]["phi"]
    saved["model"]["layer_weights"] = None  # removed since, at the value that changes nothing
    record = {"parts": manifest.num_parts, "data": manifest.digest(), "settings": saved}
    check_same_run(tmp_path, record, manifest, settings)
    with pytest.raises(InputError, match=r"saved with loss.t=2.0, resumed with 3.0") as error:
        check_same_run(tmp_path, record, manifest, small_settings(prepared, tmp_path / "run", loss={"t": 3}))
    assert error.value.code == "resume.setting"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, alone: Runtime) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    run(small_settings(prepare_small(folder), folder / "run", train={"max_steps": 2}), alone)
    return folder / "run"


@pytest.mark.parametrize(
    ("other", "changed", "code"),
    [
        ({"parts": 2}, {}, "resume.data"),
        ({"dataset": small_dataset(seed=9)}, {}, "resume.data"),
        ({}, {"model": {"dim": 4}}, "resume.setting"),
        ({}, {"loss": {"gamma": 3.0}}, "resume.setting"),
        ({}, {"propagation": {"user_item_layers": 1}}, "resume.setting"),
        ({}, {"train": {"batch_size": 7}}, "resume.setting"),
        ({}, {"train": {"seed": 7}}, "resume.setting"),
    ],
)
@pytest.mark.parametrize("how", [Resume.NEWEST, Resume.AUTO])
def test_a_changed_run_is_not_resumed(
    begun: Path,
    alone: Runtime,
    tmp_path: Path,
    other: dict[str, Any],
    changed: dict[str, Any],
    code: str,
    how: Resume,
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    prepared = begun.with_name("prepared")
    kept = {path: path.read_bytes() for path in (tmp_path / "run/checkpoints").rglob("*") if path.is_file()}
    if other:
        prepared = prepare_small(tmp_path, **other)
    changed = {**changed, "train": {"max_steps": 4, **changed.get("train", {})}}
    with pytest.raises(InputError) as error:
        run(small_settings(prepared, tmp_path / "run", **changed), alone, how)
    assert error.value.code == code
    assert {path: path.read_bytes() for path in kept} == kept
