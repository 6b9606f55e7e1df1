"""The checkpoints of a run on disk: which one is current, which is the best, which are kept. Used by rank 0 only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cm3_dist.checkpoint.integrity import (
    PROGRESS,
    TORN,
    Record,
    put_in_place,
    read_record,
    remove,
    remove_all,
    write_record,
)
from cm3_dist.errors import InputError
from partition.files import recover, write_text

LATEST, BEST = "latest", "best"


class CheckpointDirectory:
    """Checkpoints `step-*`, and the pointers `latest` and `best`.

    Args:
        path: the folder.
        keep: number of checkpoints to keep, in addition to the best ones.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self._keep = path, keep
        self._best_forgotten = False

    def begin(self, temporary: Path) -> None:
        """Creates the temporary folder of a checkpoint and deletes what interrupted saves left."""
        self.path.mkdir(exist_ok=True)  # without parents: a run folder that was deleted is not created again
        remove_all(self.path.glob("step-*.tmp"))
        for name in (LATEST, BEST):
            recover(self.path / name)
        temporary.mkdir()

    def commit(self, temporary: Path, final: Path, progress: dict[str, Any], files: dict[str, str], best: bool) -> None:
        """Completes a checkpoint whose tensors are written, renames it and makes it the current one."""
        before = None if best else self.best()
        best_name = final.name if best else before.name if before else None
        write_record(temporary, Record(progress, best_name), files)
        # `final` may exist: from a process that ended before the next line, or from an earlier save of this step.
        put_in_place(temporary, final)
        write_text(self.path / LATEST, final.name + "\n")
        if best_name:
            write_text(self.path / BEST, best_name + "\n")
        self._prune(final)
        self._best_forgotten &= not best

    def point_at(self, path: Path | None) -> None:
        """Makes `path` the current checkpoint; None: there is none."""
        if path is not None:
            write_text(self.path / LATEST, path.name + "\n")
        else:
            for name in (LATEST, BEST):
                (self.path / name).unlink(missing_ok=True)

    def forget_best(self) -> None:
        """Records no best checkpoint in the following ones, until there is a new best."""
        self._best_forgotten = True

    def newest(self) -> Path | None:
        """The current checkpoint: the one that `latest` names.

        Raises:
            InputError: `latest` is damaged, or names no checkpoint.
        """
        pointer = self.path / LATEST
        if not pointer.is_file():
            return None
        try:
            name = pointer.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"{pointer}: cannot be read: {error}", TORN) from None
        return self._beside(pointer, name)

    def newest_first(self) -> list[Path]:
        """All checkpoints in the order in which to try them: the current one, older ones, then all others."""
        try:
            newest = self.newest()
        except InputError:
            newest = None
        # Checkpoints after the current one were never current, or belong to an abandoned branch (the run resumed from
        # an earlier step).
        steps = self._steps()[::-1]
        counted = [path for path in steps if newest is None or path.name <= newest.name]
        return counted + [path for path in steps if path not in counted]

    def best(self) -> Path | None:
        """The best checkpoint, according to the current one.

        Raises:
            InputError: as `newest`; or the current one is damaged.
        """
        newest = self.newest()
        if newest is None or self._best_forgotten:
            return None
        name = read_record(newest).best
        return None if name is None else self._beside(newest / PROGRESS, name)

    def _prune(self, newest: Path) -> None:
        """Keeps the newest ones and the best of each, so that a run can resume from any of them."""
        steps = self._steps()
        # Checkpoints of later steps belong to an abandoned branch (the run resumed from an earlier step).
        kept = {path.name for path in [path for path in steps if path.name <= newest.name][-self._keep :]}
        for name in sorted(kept):
            try:
                kept.add(read_record(self.path / name).best or name)
            except InputError:
                continue  # damaged; it is deleted when newer ones replace it
        for path in steps:
            if path.name not in kept:
                remove(path)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.path.glob("step-*") if path.suffix == "" and path.is_dir())

    def _beside(self, source: Path, name: str) -> Path:
        path = self.path / name
        if not re.fullmatch(r"step-\d+", name) or not path.is_dir():
            raise InputError(f"{source}: names the checkpoint {name!r}, which is not in {self.path}", TORN)
        return path
