"""Signals to processes started by their users' commands; test_stop_signal.py has the same within one process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cm3_dist.errors import INTERRUPTED
from tests.support.launch import Training
from tests.support.small import prepare_small

pytestmark = pytest.mark.slow

LONG = [
    *("train.batch_size=20", "train.epochs=2", "model.dim=8", "evaluate.ks=[20]"),
    *("machine.device=cpu", "machine.threads=1"),
]  # some 50 steps an epoch


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [f"data.path={prepare_small(tmp_path_factory.mktemp('data'))}", *LONG]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the run that nothing disturbs."""
    run = tmp_path_factory.mktemp("whole") / "run"
    code, output = Training(0, [*arguments, f"run.dir={run}"]).finish()
    assert code == 0, output
    return result(run)


def result(run: Path) -> dict[str, Any]:
    content = json.loads((run / "metrics.json").read_text())
    losses = [json.loads(line)["loss"] for line in (run / "steps.jsonl").read_text().splitlines()]
    return {"test": content["test"], "best_epoch": content["best_epoch"], "losses": losses}


def goes_on_to(whole: dict[str, Any], ranks: int, arguments: list[str], run: Path, resume: list[str]) -> None:
    assert not (run / "metrics.json").exists()
    step = int((run / "checkpoints/latest").read_text().strip().removeprefix("step-"))
    assert 0 < step < len(whole["losses"])
    code, output = Training(ranks, [*arguments, f"run.dir={run}", *resume]).finish()
    assert code == 0, output
    after = result(run)
    assert after["losses"] == pytest.approx(whole["losses"], rel=1e-5, abs=1e-6)
    assert after["test"] == pytest.approx(whole["test"], abs=1e-6)
    assert after["best_epoch"] == whole["best_epoch"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_in_the_middle_of_an_epoch(
    arguments: list[str], whole: dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    training = Training(0, [*arguments, f"run.dir={run}"], held_at=5)
    training.wait_until_held()
    training.process.send_signal(number)
    training.wait_for(lambda: f"{number.name}: saving after this step" in training.output(), "the signal")
    training.release()
    code, output = training.finish()
    assert code == INTERRUPTED == 75, output
    assert f"stopped by {number.name} after 5 steps" in output
    assert "Traceback" not in output
    goes_on_to(whole, 0, arguments, run, ["--resume"])
    assert result(run) == whole


def test_a_signal_to_one_rank_ends_all_of_them(arguments: list[str], whole: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = Training(2, [*arguments, f"run.dir={run}"], held_at=5)
    training.wait_until_held()
    os.kill(training.rank_pids()[1], signal.SIGUSR1)
    training.release()
    code, output = training.finish()
    assert code == 1, output  # torchrun's own, whatever its ranks end with
    assert "stopped by SIGUSR1 after " in output
    assert "exitcode  : 75" in output
    goes_on_to(whole, 0, arguments, run, ["--resume", "auto"])


def test_torchrun_passes_signals_on(arguments: list[str], whole: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = Training(2, [*arguments, f"run.dir={run}"], "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", held_at=5)
    training.wait_until_held()
    pids = training.rank_pids()
    for pid in (training.process.pid, *pids):  # as Slurm does: to every process of the job
        os.kill(pid, signal.SIGUSR1)
    training.release()
    _, output = training.finish()
    assert "stopped by SIGUSR1 after " in output
    assert "leaving at once" not in output
    goes_on_to(whole, 2, arguments, run, ["--resume"])


def test_a_second_signal_leaves_at_once(arguments: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = Training(2, [*arguments, f"run.dir={run}"], held_at=5)
    training.wait_until_held()
    first, second = training.rank_pids()
    os.kill(second, signal.SIGSTOP)  # rank 0 cannot save without it
    training.release()

    def has_ended() -> bool:
        if first in training.rank_pids():
            os.kill(first, signal.SIGTERM)  # early ones count as the same signal, see SAME_REQUEST
            return False
        return True

    training.wait_for(has_ended, "the end of rank 0")
    os.kill(second, signal.SIGCONT)
    code, output = training.finish()
    assert code == 1
    assert "rank 0: SIGTERM again, leaving at once" in output


def test_saving_by_steps_and_by_the_clock(arguments: list[str], whole: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    cadence = ["run.save_steps=7", "run.keep=100"]
    assert Training(2, [*arguments, f"run.dir={run}", *cadence]).finish()[0] == 0
    saved = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")]
    steps = len(whole["losses"])
    assert sorted(saved) == sorted({*range(7, steps + 1, 7), steps // 2, steps})
    # Going back to a checkpoint in the middle of an epoch, on one rank, changes nothing.
    (run / "checkpoints/latest").write_text("step-00000007\n")
    (run / "metrics.json").unlink()
    goes_on_to(whole, 0, arguments, run, ["--resume", "run.save_minutes=0.0001", "run.keep=100"])
    later = [path for path in (run / "checkpoints").glob("step-*") if int(path.name[5:]) > 7]
    assert len(later) > 10


def test_auto_passes_over_what_is_damaged(arguments: list[str], whole: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    cadence = ["run.save_steps=4", "run.keep=100", "--resume", "auto"]
    training = Training(0, [*arguments, f"run.dir={run}", *cadence], held_at=15)
    training.wait_until_held()
    training.process.send_signal(signal.SIGTERM)
    training.release()
    code, output = training.finish()
    assert code == INTERRUPTED, output
    assert "no whole checkpoint, starting from the beginning" in output
    damaged = sorted((run / "checkpoints").glob("step-*"))[-2:]
    (damaged[1] / "__0_0.distcp").unlink()
    with (damaged[0] / "__0_0.distcp").open("r+b") as file:
        file.truncate(100)
    code, output = Training(0, [*arguments, f"run.dir={run}", "--resume"]).finish()
    assert code == 2
    assert f"{damaged[1].name}/__0_0.distcp: cannot be read" in output
    code, output = Training(0, [*arguments, f"run.dir={run}", *cadence]).finish()
    assert code == 0, output
    assert output.count("passed over: ") == 2
    for path in damaged:
        assert f"passed over: {path}/__0_0.distcp: " in output
    assert result(run) == whole
