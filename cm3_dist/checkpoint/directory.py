"""The folder of all checkpoints of a run: which of them count, which is the best, which are kept. Rank 0's affair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cm3_dist.checkpoint.integrity import (
    PROGRESS,
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


class CheckpointFolder:
    """Checkpoints `step-*`, and the pointers `latest` and `best`.

    Args:
        path: the folder.
        keep: how many checkpoints stay, besides the best ones.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self._keep = path, keep
        self._best_forgotten = False

    def begin(self, temporary: Path) -> None:
        """Makes room for a checkpoint, and clears away what interrupted saves left."""
        self.path.mkdir(exist_ok=True)  # not the run's folder: where that was removed, nobody wants it back
        remove_all(self.path.glob("step-*.tmp"))
        for name in (LATEST, BEST):
            recover(self.path / name)
        temporary.mkdir()

    def commit(self, temporary: Path, final: Path, progress: dict[str, Any], files: dict[str, str], best: bool) -> None:
        """Gives a checkpoint whose tensors are written its name, and makes it count."""
        before = None if best else self.best()
        best_name = final.name if best else before.name if before else None
        write_record(temporary, Record(progress, best_name), files)
        # There may be one from a session that ended before the next line, or from an earlier save of this step.
        put_in_place(temporary, final)
        write_text(self.path / LATEST, final.name + "\n")
        if best_name:
            write_text(self.path / BEST, best_name + "\n")
        self._prune(final)
        self._best_forgotten &= not best

    def point_at(self, path: Path | None) -> None:
        """Makes `path` the newest that counts, or none at all."""
        if path is not None:
            write_text(self.path / LATEST, path.name + "\n")
        else:
            for name in (LATEST, BEST):
                (self.path / name).unlink(missing_ok=True)

    def forget_best(self) -> None:
        """Leaves the best checkpoint out of the next ones, until there is a new one."""
        self._best_forgotten = True

    def newest(self) -> Path | None:
        """The checkpoint that counts last.

        Raises:
            InputError: `latest` is damaged or leads nowhere.
        """
        pointer = self.path / LATEST
        if not pointer.is_file():
            return None
        try:
            name = pointer.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise InputError(f"{pointer}: cannot be read: {error}") from None
        return self._beside(pointer, name)

    def newest_first(self) -> list[Path]:
        """All checkpoints, those that count first."""
        try:
            newest = self.newest()
        except InputError:
            newest = None
        # Those after the one that `latest` names never counted, or are of a course that the run left.
        steps = self._steps()[::-1]
        counted = [path for path in steps if newest is None or path.name <= newest.name]
        return counted + [path for path in steps if path not in counted]

    def best(self) -> Path | None:
        """The best one, as of the newest.

        Raises:
            InputError: as `newest`; or the newest is damaged.
        """
        newest = self.newest()
        if newest is None or self._best_forgotten:
            return None
        name = read_record(newest).best
        return None if name is None else self._beside(newest / PROGRESS, name)

    def _prune(self, newest: Path) -> None:
        """Keeps the newest ones and the best of each: should the newest be damaged, the one before is as complete."""
        steps = self._steps()
        # Checkpoints of later steps are of a course that the run left, when it went on from an earlier one.
        kept = {path.name for path in [path for path in steps if path.name <= newest.name][-self._keep :]}
        for name in sorted(kept):
            try:
                kept.add(read_record(self.path / name).best or name)
            except InputError:
                continue  # damaged meanwhile; its turn comes
        for path in steps:
            if path.name not in kept:
                remove(path)

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.path.glob("step-*") if path.suffix == "" and path.is_dir())

    def _beside(self, source: Path, name: str) -> Path:
        path = self.path / name
        if path.parent != self.path or "\0" in name or not path.is_dir():
            raise InputError(f"{source}: names the checkpoint {name!r}, which is not in {self.path}")
        return path
