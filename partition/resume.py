"""Resume: the results of finished stages are kept, so that a command that was interrupted continues where it stopped.

The work folder `.NAME.work` lies beside the output NAME. It holds one file or folder per stage (what is in them:
`partition.stage_results`), each under a temporary name until it is complete, and the key of the command that made them:
its options, and the stamps of its input files (`partition.input_files`). The same command on the same files uses the
results; another command or a changed file empties the folder first, and one line says which. The folder is deleted when
the output is complete, and when the input turns out to be wrong; after any other failure it stays.
`.NAME.lock` keeps two commands from preparing one output at the same time; it lies outside the folder that it guards.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from partition.errors import InputError, ResourceError
from partition.files import fsync, fsync_tree, naming, recover, remove, write_text
from partition.input_files import Stamp, stamps
from partition.locks import lock

FORMAT = 2  # of the results; those of another format are not used
_KEY, _STATISTICS = "key.json", "statistics.json"


class Work:
    """The work folder of one preparation.

    Args:
        folder: an existing folder.
        listing: returns the stamps of the files of a place, by name.
    """

    def __init__(self, folder: Path, listing: Callable[[str], dict[str, Stamp]] = stamps) -> None:
        self.folder, self._listing = folder, listing

    def has(self, name: str) -> bool:
        """Whether the result `name` is complete."""
        return (self.folder / name).exists()

    def result(self, name: str, make: Callable[[Path], object]) -> Path:
        """Returns the path of a stage's result; when there is none, `make` writes it first, as a file or a folder.

        Several threads may ask for results of different names. What `make` has written when it fails is deleted, so
        that a full disk has room again.

        Raises:
            OSError: it cannot be written.
        """
        target = self.folder / name
        if not target.exists():
            temporary = self.folder / f"{name}.tmp"
            remove(temporary)
            with naming(target, temporary):
                try:
                    make(temporary)
                    fsync_tree(temporary)
                    temporary.rename(target)
                except BaseException:
                    remove(temporary)
                    raise
                fsync(self.folder)
        return target

    def note(self, statistics: dict[str, float]) -> None:
        """Keeps the statistics of the finished stages."""
        write_text(self.folder / _STATISTICS, json.dumps(statistics))

    def noted(self) -> dict[str, float]:
        """Returns the statistics kept last."""
        path = self.folder / _STATISTICS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def depends_on(self, places: Iterable[str]) -> None:
        """Adds places whose files have been read; the results are used again only if these have not changed either."""
        key = json.loads((self.folder / _KEY).read_text(encoding="utf-8"))
        _write_key(self.folder, key["command"], {**_as_stamps(key["places"]), **_listed(places, self._listing)})


@contextmanager
def work_folder(output: Path, command: dict[str, Any], inputs: Sequence[str]) -> Iterator[Work]:
    """Yields the work folder of `output`, with the results of an earlier try of the same command on the same files.

    Args:
        output: the file or folder to be written.
        command: everything else that the results depend on, as JSON.
        inputs: places on whose files the results depend: files, folders, patterns, URIs (`partition.input_files`).

    Raises:
        InputError: `output.locked`, another process is preparing it.
        OSError: the disk is full, or nothing can be written there; it names the file. What is finished is kept.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f".{output.name}.work")
    own = str(output.resolve()) + os.sep

    def listing(place: str) -> dict[str, Stamp]:
        """Without the files of an earlier output, which may lie in a folder of the input."""
        return {name: stamp for name, stamp in stamps(place).items() if not name.startswith(own)}

    held = f"{output}: another command is preparing it; wait, or choose another --output"
    with lock(output.with_name(f".{output.name}.lock"), held), naming(output, output):
        recover(output)
        _empty_unless_same(folder, output, command, inputs, listing)
        try:
            yield Work(folder, listing)
        except ResourceError:
            raise
        except InputError:
            remove(folder)
            raise
        remove(folder)


Listing = dict[str, dict[str, Stamp]]  # place -> name of a file -> stamp


def _empty_unless_same(
    folder: Path,
    output: Path,
    command: dict[str, Any],
    inputs: Sequence[str],
    listing: Callable[[str], dict[str, Stamp]],
) -> None:
    """Makes the work folder; what another command, or other files, left in it is deleted."""
    folder.mkdir(exist_ok=True)
    try:
        key = json.loads((folder / _KEY).read_text(encoding="utf-8"))
        before, then = key["command"], _as_stamps(key["places"])
        readable = key["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        before, then, readable = {}, {}, False
    now = _listed([*inputs, *then], listing)
    if readable:
        changed = _changed_option(before, command) or _changed_file(then, now)
    else:
        changed = "it was left by another version of this program" if any(folder.iterdir()) else ""
    if readable and not changed:
        return
    if changed:
        print(f"{output}: prepared anew, not resumed: {changed}", file=sys.stderr)
    for found in folder.iterdir():
        remove(found)
    _write_key(folder, command, {place: now[place] for place in inputs})


def _changed_option(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    listed = ", ".join(f"--{name.replace('_', '-')}" for name in names)
    return f"the interrupted command had another {listed}" if names else ""


def _changed_file(before: Listing, now: Listing) -> str:
    for place, files in before.items():
        for name, stamp in files.items():
            if name not in now[place]:
                return f"{name} is gone since the interrupted command"
            if now[place][name] != stamp:
                return f"{name} {stamp.difference(now[place][name])} since the interrupted command"
    for place, files in now.items():
        if new := [name for name in files if name not in before.get(place, {})]:
            return f"{new[0]} was not there at the interrupted command"
    return ""


def _listed(places: Iterable[str], listing: Callable[[str], dict[str, Stamp]]) -> Listing:
    return {place: listing(place) for place in dict.fromkeys(places)}


def _as_stamps(places: dict[str, dict[str, list[int]]]) -> Listing:
    return {place: {name: Stamp(*stamp) for name, stamp in files.items()} for place, files in places.items()}


def _write_key(folder: Path, command: dict[str, Any], places: Listing) -> None:
    content = {place: {name: astuple(stamp) for name, stamp in files.items()} for place, files in places.items()}
    write_text(folder / _KEY, json.dumps({"format": FORMAT, "command": command, "places": content}))
