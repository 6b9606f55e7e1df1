"""Files and folders that are written whole or not at all, and digests of files; for every package.

A file or folder is written under a temporary name beside its final one, flushed to the disk and then renamed. A reader
sees the old content or the new one, never half of it, also after a crash or a power failure. A process that is killed
leaves its temporary names behind: `.NAME.PID.tmp`, and `.NAME.PID.old` for a folder that was about to be replaced.
`recover` clears them away.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

_OPEN = ".nfs"  # how the names of deleted files begin that NFS keeps until they are closed
_READ_BYTES = 1 << 20  # read at a time for a digest
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_NUMPY_FULL = re.compile(r"Not enough free space|\d requested and \d+ written")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file written there takes the name `path` when the block succeeds.

    A file of that name is replaced. When the block raises, the temporary file is removed and `path` is left alone.

    Raises:
        OSError: the file cannot be written; it names `path`.
    """
    temporary = _beside(path, "tmp")
    try:
        with naming(path, temporary):
            yield temporary
            fsync(temporary)
            temporary.rename(path)
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file of UTF-8 text with `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new temporary folder beside `path`, which takes the name `path` when the block succeeds.

    A folder of that name is replaced; whether it may be is for the caller to check, at the end of the block. When the
    block raises, the temporary folder is removed and `path` is left alone.

    Raises:
        OSError: the folder cannot be written; it names `path`, or a file in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    remove(temporary)
    temporary.mkdir()
    try:
        with naming(path, temporary):
            yield temporary
            fsync_tree(temporary)
            replace_folder(temporary, path, _beside(path, "old"))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def naming(path: Path, temporary: Path) -> Iterator[None]:
    """Makes errors of the disk in the block name `path`: those that name no file, or `temporary` or a file in it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (None, *DISK_ERRORS):  # None: NumPy's and Arrow's
            text = " ".join(str(error).split())
            if error.errno is None and _NUMPY_FULL.search(text):
                error.errno = errno.ENOSPC
            error.strerror = text if error.errno is None else os.strerror(error.errno)
            error.filename = str(path)
        elif error.filename is not None and os.fsdecode(error.filename).startswith(str(temporary)):
            error.filename = str(path) + os.fsdecode(error.filename)[len(str(temporary)) :]
        raise


def is_free(path: Path) -> bool:
    """Whether a folder may be written there without a loss: nothing is there, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def replace_folder(new: Path, path: Path, old: Path) -> None:
    """Renames the folder `new` to `path`; a folder of that name is exchanged for it and deleted.

    Where the file system cannot exchange two names (NFS), `path` is renamed to `old` first, and there is no folder
    `path` between the two renames.
    """
    replaced = path.exists()
    if not replaced:
        new.rename(path)
    elif _exchange(new, path):
        old = new
    else:
        path.rename(old)
        new.rename(path)
    fsync(path.parent)
    if replaced:
        remove(old)


def recover(path: Path) -> None:
    """Deletes what killed processes left beside `path`; a folder that they had moved away is put back."""
    left = re.compile(re.escape(f".{path.name}") + r"\.\d+\.(tmp|old)")
    for found in sorted(path.parent.glob(f".{path.name}.*")):
        if left.fullmatch(found.name):
            if found.suffix == ".old" and not path.exists():
                found.rename(path)
            else:
                remove(found)


def remove(path: Path) -> None:
    """Deletes a file or a folder, if there is one.

    On NFS a deleted file that is still open or mapped stays as `.nfs*` until it is closed. A folder in which only such
    files are left stays, too, and is not an error.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_raise_unless_open)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if not path.name.startswith(_OPEN):
            raise


def fsync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Waits until a file, or a folder with everything in it, is on the disk."""
    for found in [*path.rglob("*"), path]:
        fsync(found)


def sha256(path: Path) -> str:
    """Returns the digest of a file's bytes as lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{suffix}")


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; returns False where that is not possible."""
    at_cwd, exchange = -100, 2  # fcntl.h, linux/fs.h
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0


def _raise_unless_open(
    function: Callable[..., Any], name: str, failure: tuple[type[BaseException], BaseException, TracebackType]
) -> None:
    """Called by shutil.rmtree for what it could not delete: passes over files that NFS keeps because they are open."""
    path = Path(name)
    left = [path] if not path.is_dir() else [found for found in path.rglob("*") if not found.is_dir()]
    if not left or not all(found.name.startswith(_OPEN) for found in left):
        raise failure[1]
