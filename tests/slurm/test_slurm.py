"""The scripts of slurm/ on a real Slurm of two nodes, which slurm/local.sh brings up on this machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.small import prepare_small, small_settings

MISSING = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if shutil.which(name) is None]
LIMIT = 400  # seconds a job may take, the wait for its requeue included
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,  # six minutes, most of it waiting for jobs
    pytest.mark.skipif(bool(MISSING), reason=f"no Slurm: {', '.join(MISSING)} (apt-get install slurm-wlm munge)"),
]


def variables(printed: str) -> dict[str, str]:
    """The variables of an `export` line."""
    return dict(word.split("=", 1) for word in shlex.split(printed)[1:])


class Slurm:
    """A local Slurm, a prepared folder and a job file to train on it."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder, self.state = folder, state
        self.environment = {
            **os.environ,
            "CM3_LOCAL_NODES": "2",
            "CM3_LOCAL_CPUS": "2",
            "CM3_PYTHON": sys.executable,
            "CM3_RUNS": str(folder / "runs"),
            "SBATCH_OUTPUT": str(folder / "slurm-%j.out"),
            "PYTHONPATH": str(ROOT),
        }
        self.environment |= variables(self("slurm/local.sh", "up", str(state)))
        settings = small_settings(prepare_small(folder), folder / "unused", train={"epochs": 3, "batch_size": 100})
        self.job = folder / "job.yaml"
        self.job.write_text(yaml.safe_dump(settings.plain()))

    def __call__(self, *words: str, **variables: str) -> str:
        """Runs a command from the repository's root; returns its stdout."""
        done = self.attempt(*words, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def attempt(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command from the repository's root, which may fail."""
        environment = {**self.environment, **variables}
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def train(self, name: str, *more: str, options: tuple[str, ...] = (), **variables: str) -> tuple[str, Path]:
        """Submits slurm/train.sbatch; returns the job's id and its run folder."""
        folder = self.folder / name
        words = ["sbatch", "--parsable", "--cpus-per-task=1", *options, "slurm/train.sbatch"]
        return self(*words, "--config", str(self.job), f"run.dir={folder}", *more, **variables), folder

    def wait(self, *jobs: str) -> None:
        """Until no job is left in the queue."""
        end = time.monotonic() + LIMIT
        left = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}
        while True:
            queue = self.attempt("squeue", "--noheader", "--format=%T", "--jobs", ",".join(jobs), "--states=all")
            if queue.returncode == 0 and not left & set(queue.stdout.split()):  # a busy slurmctld refuses at times
                return
            self._check(end, queue.stdout + queue.stderr)
            time.sleep(0.5)

    def until(self, path: Path, text: str) -> None:
        """Until a log has `text`."""
        end = time.monotonic() + LIMIT
        while not path.exists() or text not in path.read_text():
            self._check(end, f"{path} lacks {text!r}")
            time.sleep(0.1)

    def _check(self, end: float, message: str) -> None:
        """Fails after `end`, with all logs, and without leaving the nodes to the jobs that hang."""
        if time.monotonic() < end:
            return
        queue = self.attempt("squeue", "--format=%i %T %r %M %N").stdout
        self.attempt("scancel", "--user", str(os.getuid()))
        logs = [*sorted(self.folder.rglob("*.log")), *sorted(self.state.glob("slurm*.log"))]
        tails = [f"== {path}\n" + "\n".join(path.read_text().splitlines()[-15:]) for path in logs]
        raise AssertionError("\n".join([message, queue, *tails]))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    state = Path(tempfile.mkdtemp(prefix="slurm-"))
    found = Slurm(tmp_path_factory.mktemp("slurm"), state)
    yield found
    found("slurm/local.sh", "down", str(state))
    assert not state.exists()


def result(folder: Path) -> dict[str, Any]:
    log = folder / "slurm.log"
    assert (folder / "metrics.json").exists(), log.read_text() if log.exists() else f"{folder}: no log"
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_two_nodes_equal_one(slurm: Slurm) -> None:
    """One torchrun per node, for a job with two tasks per node, meet by c10d; and one torchrun of as many ranks."""
    two, apart = slurm.train("two-nodes", options=("--nodes=2", "--ntasks-per-node=2"), CM3_RANKS="1")
    one, together = slurm.train("one-node", options=("--nodes=1",), CM3_RANKS="2")
    slurm.wait(two, one)
    assert result(apart)["world_size"] == result(together)["world_size"] == 2
    log = (apart / "slurm.log").read_text()
    assert "--ntasks=2 --ntasks-per-node=1 --cpus-per-task=2 " in log
    assert "--nnodes=2 --nproc_per_node=1" in log
    assert f"== job {two}, start 1" in log
    assert losses(apart) == pytest.approx(losses(together), rel=1e-6)
    assert result(apart)["test"] == pytest.approx(result(together)["test"], abs=1e-6)
    assert re.search(
        r"--rdzv_endpoint=localhost:\d+ --local_addr=localhost ", log
    )  # this machine may not know its name
    assert (slurm.folder / f"slurm-{two}.out").read_text() == f"log: {apart}/slurm.log\n"


def test_a_node_that_fails_ends_the_job_at_once(slurm: Slurm) -> None:
    """Without --kill-on-bad-exit the other node waits for a collective or for torchrun's rendezvous, ten minutes."""
    fails_on_node2 = slurm.folder / "python"
    fails_on_node2.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" = node1 ] || exit 3\nexec {sys.executable} "$@"\n')
    fails_on_node2.chmod(0o755)
    job, folder = slurm.train("fails", options=("--nodes=2",), CM3_RANKS="1", CM3_PYTHON=str(fails_on_node2))
    slurm.wait(job)
    log = (folder / "slurm.log").read_text()
    assert "exit code 3" in log.lower()
    assert not (folder / "metrics.json").exists()


def test_a_warned_job_saves_requeues_itself_and_ends_as_if_never_warned(slurm: Slurm) -> None:
    many = ("train.epochs=60", "train.patience=100")
    warned, folder = slurm.train("warned", *many)
    log = folder / "slurm.log"
    slurm.until(log, "epoch   2  validation")
    slurm("scancel", "--batch", "--signal=USR1", warned)  # as --signal=B:USR1@... does before the time limit
    slurm.until(log, "== requeued")
    whole, other = slurm.train("whole", *many)
    slurm.wait(warned, whole)
    said = log.read_text()
    assert "== warned by Slurm: saving" in said
    assert f"== job {warned}, start 2" in said
    assert losses(folder) == pytest.approx(losses(other), rel=1e-6)  # every step once
    assert result(folder)["test"] == pytest.approx(result(other)["test"], abs=1e-6)


def test_a_warned_task_of_an_array_leaves_the_others_alone(slurm: Slurm) -> None:
    """The task with the array's own job id is warned: its id without the index would name all tasks."""
    sweep, into = slurm.folder / "array.yaml", slurm.folder / "runs" / "array"
    many = {"train.epochs": 60, "train.patience": 100}
    sweep.write_text(yaml.safe_dump({"base": "job.yaml", "settings": many, "grid": {"train.seed": [1, 2]}}))
    job = slurm("sbatch", "--parsable", "--cpus-per-task=1", "--array=0-1", "slurm/sweep.sbatch", str(sweep))
    logs = [into / "slurm" / job / f"{index}.log" for index in (0, 1)]
    for log in logs:
        slurm.until(log, "== job")
    ids = slurm("squeue", "--noheader", "--array", "--format=%A %K", "--jobs", job).split()
    warned = int(ids[ids.index(job) + 1])
    slurm.until(logs[warned], "epoch   2  validation")
    slurm("scancel", "--batch", "--signal=USR1", f"{job}_{warned}")
    slurm.until(logs[warned], "== requeued")
    slurm.wait(job)
    assert f"== job {job}_{warned}, start 2" in logs[warned].read_text()
    other = logs[1 - warned].read_text()
    assert "start 2" not in other
    assert "warned" not in other
    for seed in (1, 2):
        assert result(into / f"seed={seed}")["epochs"] == 60


def test_what_a_dry_run_would_submit(slurm: Slurm) -> None:
    sweep = slurm.folder / "dry.yaml"
    sweep.write_text(yaml.safe_dump({"base": "job.yaml", "grid": {"train.seed": [1, 2]}}))
    options, epochs = ["--mem=2G", "--time=5"], "train.epochs=1"
    settings = {"CM3_LIMIT": "1", "CM3_SBATCH": " ".join(options), "SLURM_CONF": "/gone"}  # it asks no Slurm
    lines = slurm("slurm/sweep.sh", "--dry-run", str(sweep), epochs, **settings).splitlines()
    into = slurm.folder / "runs" / "dry"
    assert [shlex.split(line) for line in lines if line.startswith("sbatch")] == [
        ["sbatch", f"--job-name=cm3-sweep {into}", "--array=0-1%1", *options, "slurm/sweep.sbatch", str(sweep), epochs],
        ["sbatch", "--dependency=afterany:JOBID", "slurm/report.sbatch", str(into)],
    ]


def test_a_local_slurm_starts_beside_a_port_that_is_taken() -> None:
    state = tempfile.mkdtemp(prefix="slurm-")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {**os.environ, "CM3_LOCAL_NODES": "1", "CM3_LOCAL_PORT": str(port)}

        def local(command: str) -> str:
            words = ["slurm/local.sh", command, state]
            return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

        conf = Path(variables(local("up"))["SLURM_CONF"]).read_text()
        local("down")
    assert f"SlurmctldPort={port + 2}\n" in conf
    assert not Path(state).exists()


def test_a_sweep_goes_on_where_it_was_stopped(slurm: Slurm) -> None:
    sweep, into = slurm.folder / "sweep.yaml", slurm.folder / "runs" / "sweep"
    # The second point takes long enough to be cancelled in the middle.
    points = {"short": {"train.epochs": 1}, "long": {"train.epochs": 60, "train.patience": 100}}
    sweep.write_text(yaml.safe_dump({"base": "job.yaml", "points": points}, sort_keys=False))
    submit = ("slurm/sweep.sh", str(sweep))
    job = slurm(*submit).split()[2].rstrip(",")
    logs = into / "slurm" / job
    slurm.until(logs / "1.log", "epoch   2  validation")
    twice = slurm.attempt(*submit)
    assert twice.returncode == 2
    assert f"error: {into}: job {job} is in the queue already" in twice.stderr
    slurm("scancel", f"{job}_1")
    slurm.wait(job)
    done = (into / "short" / "metrics.json").stat().st_mtime_ns
    assert not (into / "long" / "metrics.json").exists()
    said = slurm(*submit)
    again = said.split()[2].rstrip(",")
    assert "points 1;" in said
    slurm.wait(again)
    assert [path.name for path in (into / "slurm" / again).glob("*.log")] == ["1.log"]
    assert result(into / "long")["epochs"] == 60
    assert len(losses(into / "long")) == result(into / "long")["steps"]
    assert "no whole checkpoint" not in (into / "slurm" / again / "1.log").read_text()  # it was resumed
    assert (into / "short" / "metrics.json").stat().st_mtime_ns == done
