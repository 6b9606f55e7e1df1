"""The files of a run folder that are written once: settings, versions, plan, command; and the result at the end."""

from __future__ import annotations

import shlex
import socket
import sys
from pathlib import Path
from typing import Any

import yaml

from cm3_dist.config.run_files import METRICS, SETTINGS, cannot_write, versions, write_json
from cm3_dist.config.settings import Settings
from cm3_dist.errors import InputError


def refuse_taken(folder: Path, resume: bool) -> None:
    """Raises InputError when `folder` holds a run already that is not to be resumed."""
    if (folder / SETTINGS).exists() and not resume:
        hint = "continue it with --resume" if (folder / "checkpoints" / "latest").exists() else "delete it"
        raise InputError(f"{folder}: holds a run already; {hint}, or choose another run.dir")


def open_run_folder(folder: Path, settings: Settings, plan: str, world_size: int) -> None:
    """Creates `folder` with everything that repeats the run; rank 0 only.

    Raises:
        InputError: it cannot be written.
    """
    found = {**versions(), "world_size": world_size, "host": socket.gethostname()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS).unlink(missing_ok=True)  # its presence says that the run is finished
        (folder / SETTINGS).write_text(yaml.safe_dump(settings.plain(), sort_keys=False), encoding="utf-8")
        write_json(folder / "versions.json", found)
        (folder / "plan.txt").write_text(plan + "\n", encoding="utf-8")
        with (folder / "command.txt").open("a", encoding="utf-8") as handle:
            handle.write(shlex.join(sys.argv) + f"  # on {world_size} rank(s)\n")
    except OSError as error:
        raise cannot_write(folder, error) from None


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Writes metrics.json in one move; rank 0 only.

    Raises:
        InputError: it cannot be written.
    """
    path = folder / METRICS
    try:
        write_json(path, result)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path
