"""Files of a run folder are replaced completely or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3_dist.config.loading import load_settings
from cm3_dist.config.settings import Settings
from cm3_dist.training.run_dir import open_run_folder


class Killed(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


def _killed(*_: object) -> None:
    raise Killed


def test_a_killed_resume_leaves_settings_that_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (Settings.model_validate({"train": {"epochs": epochs}}) for epochs in (3, 4))
    open_run_folder(tmp_path, before, "plan", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", _killed)
        with pytest.raises(Killed):
            open_run_folder(tmp_path, after, "plan", 1)
    assert load_settings(tmp_path / "settings.yaml", []) == before
    open_run_folder(tmp_path, after, "plan", 1)
    assert load_settings(tmp_path / "settings.yaml", []) == after
    assert len((tmp_path / "command.txt").read_text().splitlines()) == 2
