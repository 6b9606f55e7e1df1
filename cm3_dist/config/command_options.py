"""Command-line options shared by the commands that use a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cm3_dist.config.loading import load_settings
from cm3_dist.config.run_files import SETTINGS
from cm3_dist.config.settings import Settings
from cm3_dist.errors import InputError

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="run folder, as cm3_dist.train wrote it")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.SUB=VALUE", help="settings of this machine, e.g. data.path=... machine.device=cpu"),
]
CheckpointName = Annotated[str, typer.Option(help="best, latest, or a name such as step-00000580")]


def run_settings(folder: Path, overrides: list[str]) -> Settings:
    """The settings of a run, with `overrides`; the folder may have been moved since.

    Raises:
        InputError: `folder` is not a run, or an override is wrong.
    """
    path = folder / SETTINGS
    if not path.is_file():
        message = f"{folder}: no {SETTINGS} here, so this is not a run; make one with python -m cm3_dist.train"
        raise InputError(message, "run.missing")
    return load_settings(path, [*overrides, f"run.dir={folder}"])
