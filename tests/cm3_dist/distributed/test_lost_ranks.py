"""A rank is killed or stopped: the others end by themselves and name it, and torchrun restarts all."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.faults import results
from tests.support.launch import PATIENCE, Training
from tests.support.small import prepare_small

pytestmark = pytest.mark.slow

SHORT = [
    *("train.batch_size=20", "train.epochs=2", "model.dim=8", "evaluate.ks=[20]", "run.save_steps=5"),
    *("machine.device=cpu", "machine.threads=1"),
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [f"data.path={prepare_small(tmp_path_factory.mktemp('data'))}", *SHORT]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> results.Result:
    run = tmp_path_factory.mktemp("whole") / "run"
    code, output = Training(2, [*arguments, f"run.dir={run}"]).finish()
    assert code == 0, output
    return results.read(run)


def nobody_is_left(run: Path) -> None:
    """No process of the run lives on."""
    deadline = time.monotonic() + PATIENCE
    while any(str(run) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_killed_rank_is_named(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = Training(2, [*arguments, f"run.dir={run}"], held_at=10)
    training.wait_until_held()
    os.kill(training.rank_pids()[1], signal.SIGKILL)
    training.release()
    code, output = training.finish()  # long before machine.timeout is over
    assert code == 1, output
    assert re.search(r"^error: rank 1 ended or stopped responding: no heartbeat .*--resume auto$", output, re.M), output
    nobody_is_left(run)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_resumes_from_the_last_checkpoint(
    arguments: list[str], whole: results.Result, tmp_path: Path, number: signal.Signals, rank: int
) -> None:
    run = tmp_path / "run"
    again = [*arguments, f"run.dir={run}", "--resume", "auto", "machine.timeout=60"]
    training = Training(2, again, "--max-restarts=1", "--shutdown-timeout=5", held_at=12)
    training.wait_until_held()
    os.kill(training.rank_pids()[rank], number)
    training.release()
    code, output = training.finish()
    assert code == 0, output
    assert f"error: rank {rank} ended or stopped responding" in output
    assert results.differences(results.read(run), whole, bitwise=True) == []
    nobody_is_left(run)
