"""Two commands never hold one lock, with the file system's locks and without."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from partition import locks
from partition.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def without_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", no_locks)


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(path: Path, **changed: Any) -> None:
    """The file of a process that was killed, as this host would have written it, or with changed fields."""
    holder = {"host": socket.gethostname(), "pid": ended_process(), "born": "then", "since": "yesterday"}
    path.write_text(json.dumps(holder | changed))


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught, locks.lock(path, "taken"):
        pass
    assert caught.value.code == "file.locked"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_lock_excludes_others_and_goes(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locks.lock(path, "taken"):
        assert refused(path) == "taken"
        assert path.exists()
    assert names(tmp_path) == []
    with locks.lock(path, "taken"):
        pass


def test_what_a_killed_process_left_does_not_count_where_there_are_locks(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    with locks.lock(path, "taken"):
        refused(path)
    assert names(tmp_path) == []


def test_a_lock_file_that_its_holder_removed_excludes_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flock = tmp_path / ".lock", fcntl.flock
    calls: list[int] = []

    def holder_ends_first(file: Any, operation: int) -> None:
        if not calls:
            path.unlink()
        calls.append(operation)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", holder_ends_first)
    with locks.lock(path, "taken"):
        assert len(calls) == 2
        assert path.exists()


@pytest.mark.usefixtures("without_flock")
def test_without_locks_the_file_excludes_others_and_goes(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locks.lock(path, "taken"):
        message = refused(path)
        assert message.startswith(f"taken; it is process {os.getpid()} on {socket.gethostname()}, since ")
        assert message.endswith(f"delete {path}")
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("changed", [{}, {"pid": os.getpid()}])
def test_a_process_that_has_ended_is_followed_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any]
) -> None:
    """Also when its number was given to another process since."""
    path = tmp_path / ".lock"
    left(path, **changed)
    with locks.lock(path, "taken"):
        line = capsys.readouterr().err
        assert line.startswith(f"{path}: taken over from process ")
        assert line.endswith(", since yesterday, which has ended\n")
        refused(path)
    assert names(tmp_path) == []


@pytest.mark.usefixtures("without_flock")
def test_a_process_of_another_host_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".lock"
    left(path, host="elsewhere", pid=7)
    assert refused(path) == f"taken; it is process 7 on elsewhere, since yesterday; if that has ended, delete {path}"
    assert not capsys.readouterr().err
    assert names(tmp_path) == [".lock"]


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}'])
def test_a_file_that_does_not_say_who_holds_it_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".lock"
    path.write_text(content)
    assert f"delete {path}, which does not say" in refused(path)


@pytest.mark.usefixtures("without_flock")
def test_one_process_alone_takes_over(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    left(path)
    guard = tmp_path / ".lock.taking"
    guard.touch()
    assert f"delete {guard}" in refused(path)
    assert names(tmp_path) == [".lock", ".lock.taking"]


@pytest.mark.usefixtures("without_flock")
def test_a_lock_that_cannot_be_written_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught, locks.lock(tmp_path / ".lock", "taken"):
        pass
    assert caught.value.filename == str(tmp_path / ".lock")
    assert names(tmp_path) == []


def test_another_error_of_the_file_system_is_not_taken_for_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), locks.lock(tmp_path / ".lock", "taken"):
        pass
