"""The files of a run folder that are written once: settings, versions, plan, command; and the result at the end."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from cm3_dist.config.settings import Settings
from cm3_dist.errors import InputError

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "dgl", "numpy", "scipy", "pyarrow")
METRICS, STEPS, EVALUATIONS, SETTINGS = "metrics.json", "steps.jsonl", "evaluations.jsonl", "settings.yaml"


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
        _write_json(folder / "versions.json", found)
        (folder / "plan.txt").write_text(plan + "\n", encoding="utf-8")
        with (folder / "command.txt").open("a", encoding="utf-8") as handle:
            handle.write(shlex.join(sys.argv) + f"  # on {world_size} rank(s)\n")
    except OSError as error:
        raise cannot_write(folder, error) from None


def versions() -> dict[str, Any]:
    """What the run ran on."""
    found: dict[str, Any] = {
        "cm3_dist": version("cm3-dist"),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = _commit()
    return {**found, "commit": commit} if commit else found


@cache
def _commit() -> str | None:
    """This source tree's commit; None without git, or when the package is installed inside another repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        found = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Writes metrics.json in one move; rank 0 only.

    Raises:
        InputError: it cannot be written.
    """
    path = folder / METRICS
    try:
        _write_json(path, result)
    except OSError as error:
        raise cannot_write(path, error) from None
    return path


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drops the JSON lines that are not wanted, and a torn last line: a resumed run redoes them.

    Raises:
        InputError: a line before the last is damaged.
    """
    if not path.exists():
        return
    kept = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if wanted(json.loads(line)):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(f"{path}:{number}: not a line that this program wrote; mend or delete it") from None
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.rename(path)


def cannot_write(path: Path, error: OSError, hint: str = "") -> InputError:
    """The error for a file of a run; the one that `error` names, else `path`."""
    return InputError(f"{os.fsdecode(error.filename or path)}: cannot be written: {error.strerror or error}{hint}")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.rename(path)
