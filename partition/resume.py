"""Results of finished stages on disk, so that a preparation that was cut off goes on where it was.

They lie beside the output in `.NAME.work`, one folder or file a stage, each under a temporary name until it is whole.
The folder goes when the output is there, or when the input turns out to be wrong; after anything else it stays, and the
same command on the same files uses it. Another command or a changed file empties it first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from partition.errors import InputError

_LEFT = re.compile(r"\.\d+\.(tmp|old)")  # names of `partition.folder.write.replacing`
_KEY, _LOCK, _STATISTICS = "key.json", "lock", "statistics.json"


class Work:
    """The folder of one preparation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether that stage is finished."""
        return (self.folder / name).exists()

    def result(self, name: str, make: Callable[[Path], object]) -> Path:
        """Where the result of a stage lies; `make` writes it, as a file or a folder, when it is not there."""
        target = self.folder / name
        if not target.exists():
            temporary = self.folder / f"{name}.tmp"
            _remove(temporary)
            make(temporary)
            for path in [*temporary.rglob("*"), temporary]:
                sync(path)
            temporary.rename(target)
            sync(self.folder)
        return target

    def note(self, statistics: dict[str, float]) -> None:
        """Keeps figures of the stages that are finished."""
        temporary = self.folder / f"{_STATISTICS}.tmp"
        temporary.write_text(json.dumps(statistics), encoding="utf-8")
        temporary.replace(self.folder / _STATISTICS)

    def noted(self) -> dict[str, float]:
        """The figures kept last."""
        path = self.folder / _STATISTICS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@contextmanager
def work_folder(output: Path, command: dict[str, Any], inputs: list[Path]) -> Iterator[Work]:
    """The work folder of `output`, with what an earlier try of the same command on the same files has left there.

    Args:
        output: the folder to be prepared.
        command: what the results depend on, JSON.
        inputs: files and folders, whose sizes and times of change they depend on, too.

    Raises:
        InputError: another process works on it.
    """
    folder = output.with_name(f".{output.name}.work")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{output}: another command is preparing it; wait, or choose another --output") from None
        _tidy(output)
        key = _key(command, inputs)
        if not (folder / _KEY).is_file() or (folder / _KEY).read_text(encoding="utf-8") != key:
            for path in folder.iterdir():
                if path.name != _LOCK:
                    _remove(path)
            (folder / _KEY).write_text(key, encoding="utf-8")
        try:
            yield Work(folder)
        except InputError:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)


def _key(command: dict[str, Any], inputs: list[Path]) -> str:
    files = sorted({file for path in inputs for file in (path.rglob("*") if path.is_dir() else [path])})
    listing = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return json.dumps({"command": command, "files": digest}, sort_keys=True)


def _tidy(output: Path) -> None:
    """Clears away what a command killed while it wrote `output` left beside it, and puts back what it had moved."""
    for path in output.parent.glob(f".{output.name}.*"):
        if _LEFT.fullmatch(path.name.removeprefix(f".{output.name}")):
            if path.suffix == ".old" and not output.exists():
                path.rename(output)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
