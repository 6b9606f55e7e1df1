"""A signal, or the clock, saves at that step on all ranks; what follows is as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cm3_dist.config.settings import Machine, Settings
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.distributed.stop_signal import StopSignal, Verdict
from cm3_dist.errors import INTERRUPTED, Interrupted
from cm3_dist.train import spell_out
from cm3_dist.training.loop import run
from cm3_dist.training.progress import Resume
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_settings

PATIENCE = 300  # seconds; only a guard against hanging
MACHINE = Machine(device="cpu", threads=1, timeout=60)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("data"))


def _settings(prepared: Path, folder: Path, **options: Any) -> Settings:
    settings = small_settings(prepared, folder, train={"batch_size": 60, "epochs": 2})
    return settings.model_copy(update={"run": settings.run.model_copy(update=options)})


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "steps.jsonl").read_text().splitlines()]


def _interrupted(
    settings: Settings, runtime: Runtime, rank: int, number: int, at: int, resume: Resume | None = None
) -> int:
    """Runs until that rank has got a signal after `at` steps; the number of steps done."""
    after_step = StopSignal.after_step

    def signalled(self: StopSignal, done: int) -> Verdict:
        if done == at and runtime.rank == rank:
            os.kill(os.getpid(), number)
            assert self.received.wait(PATIENCE)
        return after_step(self, done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopSignal, "after_step", signalled)
        with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(number).name} after") as end:
            run(settings, runtime, resume)
        assert signal.getsignal(number) is signal.SIG_IGN  # a launcher that hurries the rest does no harm
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return int(str(end.value).split(" steps")[0].split()[-1])


@pytest.fixture(scope="module")
def alone() -> Iterator[Runtime]:
    with distributed(MACHINE) as runtime:
        yield runtime


def test_a_signal_saves_at_that_step_and_resumes_bit_for_bit(prepared: Path, tmp_path: Path, alone: Runtime) -> None:
    whole = run(_settings(prepared, tmp_path / "whole"), alone)
    cut = _settings(prepared, tmp_path / "cut")
    for number, at, resume in (
        (signal.SIGTERM, 4, Resume.AUTO),  # auto also starts a run
        (signal.SIGUSR1, 5, Resume.NEWEST),
        (signal.SIGINT, 15, Resume.AUTO),  # after the last step of the first epoch, before its evaluation
    ):
        assert _interrupted(cut, alone, 0, number, at, resume) == at
        assert (tmp_path / "cut/checkpoints/latest").read_text() == f"step-{at:08d}\n"
        assert not (tmp_path / "cut/metrics.json").exists()
    assert whole["steps"] == 30
    after = run(cut, alone, Resume.NEWEST)
    for name in ("validation", "test", "best_epoch", "steps"):
        assert after[name] == whole[name]
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")


def _one_rank_of_two(prepared: Path, folder: Path) -> tuple[int, dict[str, Any], dict[str, Any]]:
    settings = _settings(prepared, folder / "cut", save_steps=5, keep=100)
    with distributed(MACHINE) as runtime:
        done = _interrupted(settings, runtime, 1, signal.SIGUSR1, 7)
        return done, run(settings, runtime, Resume.NEWEST), run(_settings(prepared, folder / "whole"), runtime)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(prepared: Path, tmp_path: Path) -> None:
    results = run_ranks(_one_rank_of_two, 2, prepared, tmp_path)
    done = 8  # the 7 steps before the signal, and the one during which the ranks told each other
    for number, after, whole in results:
        assert number == done
        assert after["test"] == whole["test"]
    assert _losses(tmp_path / "cut") == _losses(tmp_path / "whole")
    saved = [int(path.name[5:]) for path in (tmp_path / "cut/checkpoints").glob("step-*")]
    assert sorted(saved) == sorted({5, done, 10, 15, 20, 25, 30})


def test_the_clock_saves(prepared: Path, tmp_path: Path, alone: Runtime) -> None:
    run(_settings(prepared, tmp_path / "run", save_minutes=1e-6, keep=100), alone)
    assert len(list((tmp_path / "run/checkpoints").glob("step-*"))) == 30


SECOND_SIGNAL = """
import ctypes, os, signal, threading
from cm3_dist.config.settings import Machine, Run
from cm3_dist.distributed.runtime import distributed
from cm3_dist.distributed.stop_signal import SAME_REQUEST, StopSignal

seconds, looks = 0.0, threading.Semaphore(0)

def clock():
    looks.release()
    return seconds

def send(number):
    os.kill(os.getpid(), number)
    looks.acquire()  # the thread that listens has looked at the clock

with distributed(Machine(device="cpu")) as runtime, StopSignal(Run(), runtime, clock=clock) as stop:
    looks.acquire()
    send(signal.SIGTERM)
    send(signal.SIGTERM)  # a launcher passes on what arrived already
    assert stop.stop_requested() == signal.SIGTERM
    seconds = SAME_REQUEST + 1
    # The main thread is in C, as in a collective whose other ranks are gone: no Python handler can run.
    threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1)).start()
    while True:
        ctypes.CDLL(None).sleep(60)
"""


def test_a_second_signal_leaves_at_once() -> None:
    end = subprocess.run(
        [sys.executable, "-c", SECOND_SIGNAL], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert end.returncode == 128 + signal.SIGUSR1, end.stderr
    assert "SIGUSR1 again, leaving at once" in end.stderr


def test_exit_code_of_an_interrupted_run(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise Interrupted(signal.SIGTERM, 7, "step-00000007")

    with pytest.raises(SystemExit) as end:
        entry_point(interrupted)()
    assert end.value.code == INTERRUPTED == 75
    message = "stopped by SIGTERM after 7 steps, saved as step-00000007; continue with --resume"
    assert capsys.readouterr().err.strip() == message


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        (["--resume"], ["--resume=newest"]),
        (["--resume", "auto", "a=1"], ["--resume=auto", "a=1"]),
        (["--resume", "a=1", "auto"], ["--resume=newest", "a=1", "auto"]),
        (["--resume=auto"], ["--resume=auto"]),
        (["a=1"], ["a=1"]),
    ],
)
def test_the_value_of_resume_may_be_left_out(given: list[str], spelt: list[str]) -> None:
    assert spell_out(given) == spelt
