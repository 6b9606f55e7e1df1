"""Small disks in memory, which only root may mount; what is on them ends with the process that asked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mounts a disk of `size` bytes at a new folder, for a test; skips the test where that is not allowed."""
    folder.mkdir()
    if not mount(folder, size):
        pytest.skip("needs root: to mount a disk in memory")
    try:
        yield folder
    finally:
        unmount(folder)


def mount(folder: Path, size: int, *more: str) -> bool:
    """Mounts a tmpfs, or with "remount" changes its size; returns whether that is allowed."""
    options = ",".join([*more, f"size={size // 4096 * 4096}"])
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    """Removes the disk from the folder; it goes when nothing on it is open."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, left: int) -> None:
    """Takes all space of the disk but `left` bytes, by a file `filler`."""
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize - left
    if size > 0:
        with (folder / "filler").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, size)
