"""The benchmark command runs, writes what it says, and refuses what it does not know. No time is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.growth import AXES, MIDDLE, draw
from benchmarks.timing import Result
from tests.small import prepare_small

ROOT = Path(__file__).parents[1]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_speed_writes_its_table(tmp_path: Path) -> None:
    prepared, output = prepare_small(tmp_path), tmp_path / "speed.json"
    only = ["--only", "propagation layer", "--only", "batch assembly"]
    done = _run("benchmarks.speed", "--prepared", str(prepared), "--json", str(output), "--threads", "1", *only)
    assert done.returncode == 0, done.stderr
    table = json.loads(output.read_text())
    assert [row["name"] for row in table] == ["propagation layer", "batch assembly, %"]
    for row in table:
        assert row["ratio"] > 0
        assert row["met"] == (row["ratio"] <= row["target"] if row["at_most"] else row["ratio"] >= row["target"])


def test_an_unknown_benchmark_is_refused() -> None:
    done = _run("benchmarks.speed", "--only", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --only 'nothing': not a benchmark; one of epoch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_benchmarks_say_that_there_is_no_gpu() -> None:
    done = _run("benchmarks.gpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch.cuda.is_available() is False")


def test_targets_are_met_from_the_right_side() -> None:
    assert Result("fast", 5.0, 5, "").met
    assert not Result("slow", 4.9, 5, "").met
    assert Result("small", 0.9, 1, "", at_most=True).met
    assert not Result("large", 1.1, 1, "", at_most=True).met


def test_growth_is_drawn(tmp_path: Path) -> None:
    curves = {axis: {value: float(value) for value in values} for axis, values in AXES.items()}
    draw(curves, tmp_path / "images" / "growth.png")
    assert (tmp_path / "images" / "growth.png").stat().st_size > 10_000
    assert set(MIDDLE) == set(AXES)
