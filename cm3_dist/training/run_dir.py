"""The files of a run folder that are written once: settings, versions, sharding plan, command, and the result."""

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
from partition.files import write_text


def refuse_taken(folder: Path, resume: bool) -> None:
    """Checks that a new run may use `folder`.

    Raises:
        InputError: it holds a run already, and `resume` is false.
    """
    if (folder / SETTINGS).exists() and not resume:
        hint = "continue it with --resume" if (folder / "checkpoints" / "latest").exists() else "delete it"
        raise InputError(f"{folder}: holds a run already; {hint}, or choose another run.dir", "run.taken")


def open_run_folder(folder: Path, settings: Settings, plan: str, world_size: int) -> None:
    """Creates `folder` with the files that are needed to repeat the run. Rank 0 only.

    Args:
        folder: `run.dir`.
        settings: of the run.
        plan: the sharding plan as text.
        world_size: number of ranks.

    Raises:
        InputError: a file cannot be written.
    """
    found = {**versions(), "world_size": world_size, "host": socket.gethostname()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS).unlink(missing_ok=True)  # it marks a finished run
        write_text(folder / SETTINGS, yaml.safe_dump(settings.plain(), sort_keys=False))
        write_json(folder / "versions.json", found)
        write_text(folder / "plan.txt", plan + "\n")
        with (folder / "command.txt").open("a", encoding="utf-8") as handle:
            handle.write(shlex.join(sys.argv) + f"  # on {world_size} rank(s)\n")
    except OSError as error:
        raise cannot_write(folder, error) from None


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Writes metrics.json atomically and returns its path. Rank 0 only.

    Raises:
        InputError: it cannot be written.
    """
    path = folder / METRICS
    try:
        write_json(path, result)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path
