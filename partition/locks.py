"""Locks between processes, by a file that lies beside what it guards.

A lock is `flock` on the file, which ends with the process, also of a killed one. Where the file system has no `flock`
(some installations of NFS, Lustre and FUSE), the existence of the file is the lock: it is created only if it is not
there, and holds the host, the process and the time. What a killed process left is then taken over on the same host, and
refused on another one, which cannot know whether the process still runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from partition.errors import InputError

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_CODE = "file.locked"


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock on a file system without `flock`."""

    host: str
    pid: int
    born: str  # of the process, since a number is given again; "" where the system does not say
    since: str

    @classmethod
    def this(cls) -> _Holder:
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()), now)

    @property
    def has_ended(self) -> bool:
        """Whether it was a process of this host that runs no more."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return self.born != _born(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def lock(path: Path, held: str) -> Iterator[None]:
    """Holds an exclusive lock between processes.

    Args:
        path: a file for this purpose alone, outside of the folder that it guards; it is removed at the end.
        held: the message when another process holds the lock.

    Raises:
        InputError: `file.locked`, another process holds the lock, or seems to.
        OSError: the file cannot be written.
    """
    descriptor = _take(path, held)
    while descriptor is None:
        descriptor = _take(path, held)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock ends: a file of that name is then another process's
        os.close(descriptor)


def _take(path: Path, held: str) -> int | None:
    """Opens and locks the file; None if it was removed meanwhile, so that a lock on it would exclude nobody."""
    try:
        descriptor, is_new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        try:
            descriptor, is_new = os.open(path, os.O_RDWR), False
        except FileNotFoundError:
            return None
    try:
        if _has_flock(descriptor, held):
            taken = _is_at(descriptor, path)
        elif is_new:
            _write(descriptor, path)
            taken = True
        else:
            _clear_away(path, descriptor, held)
            taken = False
    except BaseException:
        os.close(descriptor)
        raise
    if taken:
        return descriptor
    os.close(descriptor)
    return None


def _has_flock(descriptor: int, held: str) -> bool:
    """Locks an open file; False where the file system cannot."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(held, _CODE) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _write(descriptor: int, path: Path) -> None:
    try:
        os.write(descriptor, json.dumps(asdict(_Holder.this())).encode())
        os.fsync(descriptor)
    except OSError as error:  # such as a full disk
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def _clear_away(path: Path, descriptor: int, held: str) -> None:
    """Removes the file of a process that has ended.

    Raises:
        InputError: the process runs, or it may.
    """
    holder = _read(descriptor)
    if holder is None:
        raise InputError(f"{held}; if no command is, delete {path}, which does not say by whom it is held", _CODE)
    if not holder.has_ended:
        raise InputError(f"{held}; it is {holder}; if that has ended, delete {path}", _CODE)
    # Of several processes that find the file, one alone may remove it: another could remove its successor.
    guard = path.with_name(f"{path.name}.taking")
    try:
        os.close(os.open(guard, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        raise InputError(f"{held}; if no command is, delete {guard}", _CODE) from None
    try:
        if _is_at(descriptor, path):
            path.unlink()
            print(f"{path}: taken over from {holder}, which has ended", file=sys.stderr)
    finally:
        guard.unlink(missing_ok=True)


def _read(descriptor: int) -> _Holder | None:
    with suppress(ValueError, TypeError):
        found: Any = json.loads(os.pread(descriptor, 4096, 0))
        return _Holder(**found)
    return None


def _born(pid: int) -> str:
    """The start of a process in ticks since the start of the machine, and which start of it that was; Linux only."""
    with suppress(OSError, IndexError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return f"{machine} {fields[19]}"
    return ""


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
