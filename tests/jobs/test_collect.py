"""Run folders are read whichever version wrote them; damaged ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs.collect import collect, collect_finished
from partition.errors import InputError


def test_finished_runs_are_found_once_and_the_others_named(study: Path) -> None:
    runs, unfinished = collect([study, study / "other"])
    assert [path.name for path in unfinished] == ["half"]
    assert len(runs) == 9
    run = next(run for run in runs if run.folder.name == "full,seed=2")
    assert (run.seed, run.split, run.data, run.memory) == (2, "test", "baby", 812.6)
    assert run.train_seconds == pytest.approx(15)
    assert run.command == "torchrun --nproc_per_node=2 -m cm3_dist.train --config jobs/baby.yaml 'data.path=a b'"
    assert [line["epoch"] for line in run.evaluations] == [0, 1]


def test_runs_of_an_earlier_version_have_the_settings_that_were_in_effect(study: Path) -> None:
    path = study / "full,seed=1/settings.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings["model"].pop("item_ids") is False  # younger than the run
    settings["model"] |= {"user_init": "random", "curve_centre": "item"}  # removed: one without effect, one with
    path.write_text(yaml.safe_dump(settings))
    runs, _ = collect([path.parent])
    assert runs[0].settings["model.item_ids"] is False
    assert "model.user_init" not in runs[0].settings
    assert runs[0].settings["model.curve_centre"] == "item"


def test_what_is_refused(study: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (study / "plain,seed=2" / "metrics.json").write_text('{"test": {')
    for folder, code in (
        (study / "gone", "runs.folder"),
        (tmp_path / "empty", "runs.none"),
        (study / "half", "runs.unfinished"),
        (study, "run.damaged"),
    ):
        with pytest.raises(InputError) as refused:
            collect_finished([folder])
        assert refused.value.code == code
    assert str(refused.value).startswith(f"{study}/plain,seed=2: ")
