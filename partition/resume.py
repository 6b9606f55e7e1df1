"""Resume: the results of finished stages are kept, so that a command that was interrupted continues where it stopped.

The work folder `.NAME.work` lies beside the output NAME. It holds one file or folder per stage (what is in them:
`partition.stage_results`), each under a temporary name until it is complete, and the key of the command that made them.
The same command on the same files uses them; another command or a changed file empties the folder first. The folder is
deleted when the output is complete, and when the input turns out to be wrong; after any other failure it stays.
`.NAME.lock` keeps two commands from preparing one output at the same time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from partition.errors import InputError
from partition.files import fsync, fsync_tree, lock, naming, recover, remove, write_text

_KEY, _STATISTICS = "key.json", "statistics.json"


class Work:
    """The work folder of one preparation.

    Args:
        folder: an existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether the result `name` is complete."""
        return (self.folder / name).exists()

    def result(self, name: str, make: Callable[[Path], object]) -> Path:
        """Returns the path of a stage's result; when there is none, `make` writes it first, as a file or a folder.

        Raises:
            OSError: it cannot be written.
        """
        target = self.folder / name
        if not target.exists():
            temporary = self.folder / f"{name}.tmp"
            remove(temporary)
            with naming(target, temporary):
                make(temporary)
                fsync_tree(temporary)
                temporary.rename(target)
                fsync(self.folder)
        return target

    def note(self, statistics: dict[str, float]) -> None:
        """Keeps the statistics of the finished stages."""
        write_text(self.folder / _STATISTICS, json.dumps(statistics))

    def noted(self) -> dict[str, float]:
        """Returns the statistics kept last."""
        path = self.folder / _STATISTICS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@contextmanager
def work_folder(output: Path, command: dict[str, Any], inputs: list[Path]) -> Iterator[Work]:
    """Yields the work folder of `output`, with the results of an earlier try of the same command on the same files.

    Args:
        output: the file or folder to be written.
        command: everything else that the results depend on, as JSON.
        inputs: files and folders that the results depend on, by their sizes and times of change.

    Raises:
        InputError: `output.locked`, another process is preparing it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f".{output.name}.work")
    held = f"{output}: another command is preparing it; wait, or choose another --output"
    with lock(output.with_name(f".{output.name}.lock"), held):
        recover(output)
        _empty_unless(folder, _key(command, inputs))
        try:
            yield Work(folder)
        except InputError:
            remove(folder)
            raise
        remove(folder)


def _empty_unless(folder: Path, key: str) -> None:
    """Makes the work folder; what another command left in it is deleted."""
    folder.mkdir(exist_ok=True)
    path = folder / _KEY
    if not path.is_file() or path.read_text(encoding="utf-8") != key:
        for found in folder.iterdir():
            remove(found)
        write_text(path, key)


def _key(command: dict[str, Any], inputs: list[Path]) -> str:
    files = sorted({file for path in inputs for file in (path.rglob("*") if path.is_dir() else [path])})
    listing = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return json.dumps({"command": command, "files": digest}, sort_keys=True)
