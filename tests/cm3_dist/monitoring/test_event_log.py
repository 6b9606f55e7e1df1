"""What cannot be written to a run's log ends the run in one line, on all ranks together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cm3_dist.config.run_files import EVALUATIONS, STEPS
from cm3_dist.monitoring.event_log import BOARD, EventLog
from partition.errors import InputError

FULL = Path("/dev/full")  # every write to it finds the disk full


def onto_full(log: EventLog, name: str) -> None:
    """From now on the open file is on a full disk."""
    target = os.open(FULL, os.O_WRONLY)
    os.dup2(target, getattr(log, name).fileno())
    os.close(target)


def steps_full(log: EventLog, folder: Path) -> None:
    onto_full(log, "_steps")


def evaluations_full(log: EventLog, folder: Path) -> None:
    onto_full(log, "_evaluations")


def board_full(log: EventLog, folder: Path) -> None:
    log.flush_board()
    [events] = (folder / BOARD).iterdir()
    events.unlink()
    events.symlink_to(FULL)


def steps_deleted(log: EventLog, folder: Path) -> None:
    (folder / STEPS).unlink()


def all_deleted(log: EventLog, folder: Path) -> None:
    shutil.rmtree(folder)


def write(log: EventLog) -> None:
    log.step({"step": 0})
    log.evaluation({"step": 0, "split": "validation"})
    log.scalars(0, {"loss": 1.0})
    log.text("a", "b", 0)
    log.flush()
    log.flush_board()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (steps_full, rf"{STEPS}: cannot be written: No space left on device; checkpoints are kept .* --resume"),
        (evaluations_full, rf"{EVALUATIONS}: cannot be written: No space left on device"),
        (board_full, r"tensorboard.*: cannot be written: No space left on device"),
        (steps_deleted, rf"{STEPS}: cannot be written: it was removed while the run wrote to it"),
        (all_deleted, r"run.*: cannot be written: "),
    ],
)
def test_what_cannot_be_written_is_said_when_asked(
    tmp_path: Path, spoil: Callable[[EventLog, Path], None], said: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    log = EventLog(folder, 0, 0)
    write(log)
    log.check()
    spoil(log, folder)
    write(log)
    assert log.failed()
    write(log)  # changes nothing any more, and does not raise
    with pytest.raises(InputError, match=said) as found:
        log.check()
    assert found.value.code == "run.unwritable"
    log.close()
    with pytest.raises(InputError) as again:
        log.check()
    assert str(again.value) == str(found.value)
    assert "b'" not in str(found.value)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.*: cannot be written: Not a directory"):
        EventLog(tmp_path / "file" / "run", 0, 0)
