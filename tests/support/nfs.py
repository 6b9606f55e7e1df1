"""NFS as it treats files that are deleted while a process has them open, on any file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import pytest


@contextmanager
def nfs(is_open: Callable[[str], bool]) -> Iterator[None]:
    """In the block a file whose name `is_open` stays as `.nfs*` when it is deleted, and cannot be deleted again."""
    unlink, number = os.unlink, count()

    def renames(name: str, *, dir_fd: int | None = None) -> None:
        last = os.path.basename(name)
        if last.startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
        if is_open(last):
            kept = os.path.join(os.path.dirname(name), f".nfs{next(number):04d}")
            os.rename(name, kept, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        else:
            unlink(name, dir_fd=dir_fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", renames)
        yield
