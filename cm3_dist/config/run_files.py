"""The names of the files in a run folder, the versions that a run records, and atomic writing of small files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cm3_dist.errors import InputError
from partition.files import write_text

PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "dgl", "numpy", "scipy", "pyarrow")
METRICS, STEPS, EVALUATIONS, SETTINGS = "metrics.json", "steps.jsonl", "evaluations.jsonl", "settings.yaml"


def versions() -> dict[str, Any]:
    """Versions of this program, Python, the platform and the main packages, and the commit if there is one."""
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
    """The commit of this source tree; None without git, or if the package is installed inside another repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        found = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def cannot_write(path: Path, error: OSError, hint: str = "") -> InputError:
    """The error for a file of a run that cannot be written: the file that `error` names, otherwise `path`."""
    return InputError(
        f"{os.fsdecode(error.filename or path)}: cannot be written: {error.strerror or error}{hint}", "run.unwritable"
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")
