"""The benchmark command runs, writes what it says, and refuses what it does not know. No time is judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.growth import AXES, MIDDLE, draw
from benchmarks.observe import family_memory, observe
from benchmarks.scale import targets
from benchmarks.scale_figures import draw as draw_scale
from benchmarks.scale_stages import slope
from benchmarks.timing import Result
from benchmarks.walk_training import WalkSampler, train
from benchmarks.walks import Comparison, Walks, draw_curves, random_rows
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.shard import load_shard
from partition.errors import InputError
from tests.support.paths import ROOT
from tests.support.small import prepare_small


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_unknown_benchmark_is_refused() -> None:
    done = _run("benchmarks.speed", "--only", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --only 'nothing': not a benchmark; one of epoch")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU: this refusal is for machines without one")
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


def test_memory_of_a_command_is_that_of_its_children_too() -> None:
    child = "x = bytearray(200 << 20); print(flush=True); input()"
    program = f"import subprocess, sys; input(); subprocess.run([sys.executable, '-c', {child!r}])"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before = family_memory(process.pid)
        process.stdin.write("\n")
        process.stdout.readline()  # the child has its memory
        after = family_memory(process.pid)
        process.stdin.write("\n")
    assert after[2] >= 200 << 20
    assert after[0] >= after[1] >= before[1] + (200 << 20)


def test_a_command_is_observed(tmp_path: Path) -> None:
    found = observe([sys.executable, "-c", "pass"], tmp_path / "log.txt")
    assert found.command == "python -c pass"
    with pytest.raises(InputError, match=r"status 3; .*log.txt: went wrong"):
        observe([sys.executable, "-c", "print('went wrong'); raise SystemExit(3)"], tmp_path / "log.txt")


def test_exponent_of_growth() -> None:
    x = [math.log(value) for value in (1.0, 2.0, 4.0, 15.0)]
    assert slope(x, [1.3 * value + 2 for value in x]) == pytest.approx(1.3)


def test_scale_is_drawn(tmp_path: Path) -> None:
    runs = {str(size): {"train": size, "epoch_seconds": size / 10, "peak_gib": 2.0} for size in (1000, 4000)}
    results = {
        "ranks": {"resident_mib": {"1": [900.0], "2": [500.0, 510.0]}},
        "growth": {"runs": runs, "exponent": 1.0},
        "cut": {"baby, exact": {"metis": 6.0, "stream": 7.0, "random": 10.0}},
    }
    draw_scale(results, tmp_path / "images" / "scale.png")
    assert (tmp_path / "images" / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_scale_has_its_targets() -> None:
    prepared = {"seconds": 1200.0, "cpu_seconds": 1800.0, "peak_gib": 13.0, "peak_own_gib": 11.0}
    cut = {"baby, exact": {"metis": 50.0, "random": 100.0}}
    found = {result.name: result for result in targets({"prepare": prepared, "cut": cut})}
    assert found["prepare, minutes"].met
    assert found["prepare, minutes"].ratio == 20
    assert not found["prepare, GiB"].met
    assert found["bytes, METIS / random: baby, exact"].ratio == 0.5


@pytest.mark.slow
def test_walks_and_trees_estimate_the_exact_sum(tmp_path: Path) -> None:
    """Over many draws of a small graph both come to it, and the noise falls with the size of a draw."""
    shard = load_shard(prepare_small(tmp_path), 0, 1)
    with distributed(Machine(device="cpu", threads=1)) as runtime, torch.no_grad():
        comparison = Comparison(shard, runtime, random_rows(shard, 8), batch=40, draws=60)
        walks = Walks(shard)
        pairs = [
            (comparison.walks(walks, 2), comparison.walks(walks, 8)),
            (comparison.tree([1]), comparison.tree([3])),
        ]
        whole = comparison.tree([-1])
    for few, many in pairs:
        for one in (few, many):
            assert one.bias < 1.2 * one.bias_by_chance, one
        assert many.noise < 0.75 * few.noise
        assert many.input_rows > few.input_rows
        assert many.cosine > few.cosine
    assert pairs[0][1].noise == pytest.approx(pairs[0][0].noise / 2, rel=0.1)  # of walks it falls with their root
    assert whole.noise < 1e-6
    draw_curves([one for pair in pairs for one in pair], tmp_path / "walks.png")


def test_a_step_on_walks_is_the_operator_that_was_drawn(tmp_path: Path) -> None:
    """The batch's rows come first in and out, and the gradient goes back by the transpose."""
    shard = load_shard(prepare_small(tmp_path), 0, 1)
    users, items = np.array([3, 5, 11]), np.array([0, 7])
    sample = WalkSampler(shard, walks=4, layers=2, seed=1).draw(users, items, epoch=0, step=0)
    assert sample.users[:3].tolist() == users.tolist()
    assert sample.items[:2].tolist() == items.tolist()
    # One-hot rows in, a column a node: what comes out is the matrix itself.
    read = len(sample.users) + len(sample.items)
    eye = torch.eye(read, requires_grad=True)
    u, i = sample.propagation(eye[: len(sample.users)], eye[len(sample.users) :])
    matrix = torch.cat([u, i])
    assert matrix.shape == (5, read)
    assert matrix.detach()[[0, 1, 2], [0, 1, 2]].ge(1 - 1e-6).all()  # a walk starts where it is
    direction = torch.randn(5, read)
    (gradient,) = torch.autograd.grad((matrix * direction).sum(), eye)
    torch.testing.assert_close(gradient, matrix.detach().T @ direction)


@pytest.mark.slow
def test_training_on_walks_learns(tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    settings = ["train.batch_size=64", "model.dim=8"]
    rates = ["tables.lr=1e-9", "dense.lr=1e-9"], ["tables.lr=0.1", "dense.lr=0.01"]
    untrained, trained = (train(prepared, "walks:5", 1, 2, 1, [*settings, *rate]) for rate in rates)
    assert trained.recall > untrained.recall + 0.02, (trained, untrained)
    assert 0 < trained.input_rows <= 1
    with pytest.raises(InputError, match="--way tree: expected exact"):
        train(prepared, "tree", 1, 1, 1, settings)
    with pytest.raises(InputError, match="item_item_layers: walks are drawn without the item graph"):
        train(prepared, "walks:1", 1, 1, 1, [*settings, "propagation.item_item_layers=1"])
