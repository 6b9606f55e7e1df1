"""The harness that breaks runs and files (`python -m tests.faults`), in small; docs/reliability.md has it at length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def faults(folder: Path, *options: str) -> dict[str, Any]:
    file = folder / "counts.json"
    command = [sys.executable, "-m", "tests.faults", "--json", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.mark.slow
def test_interruptions(tmp_path: Path) -> None:
    found = faults(tmp_path, "--trials", "10", "--no-damage", "--disks", "0", "--no-stages", "--seed", "100")
    assert found["training"]["survived"] + found["preparation"]["survived"] == 10
    assert found["training"]["in_the_middle"] > 0


@pytest.mark.slow
def test_disks(tmp_path: Path) -> None:
    found = faults(tmp_path, "--trials", "0", "--no-damage", "--disks", "4", "--no-stages", "--seed", "100")["disks"]
    assert found["survived"] == found["trials"] > 0


@pytest.mark.slow
def test_preparations_end_at_every_moment(tmp_path: Path) -> None:
    found = faults(tmp_path, "--trials", "0", "--no-damage", "--disks", "0")["stages"]
    assert found["survived"] == found["trials"] > 20


@pytest.mark.slow
def test_damage(tmp_path: Path) -> None:
    found = faults(tmp_path, "--trials", "0", "--disks", "0", "--no-stages", "--seed", "100")["damage"]
    assert found["detected"] == found["trials"] > 50
    assert found["loaded"] == 0


@pytest.mark.soak
def test_half_an_hour(tmp_path: Path) -> None:
    found = faults(tmp_path, "--trials", "0", "--no-damage", "--disks", "0", "--no-stages", "--soak", "30")["soak"]
    assert found["steps"] > 1000
    assert not found["wrong"]
