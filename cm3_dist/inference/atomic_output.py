"""Output that is written under a temporary name and appears, or replaces an earlier one, only when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cm3_dist.distributed.collectives import on_rank_0
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.errors import InputError
from partition.files import is_free, remove, replace_folder


class StagedOutput:
    """A temporary folder beside `path`, in which all ranks write, and which rank 0 then publishes.

    `publish` is not collective: the other ranks may have left the process group by then, so that rank 0 can take as
    long as it needs for work that it does alone. Make one with `stage_folder` or `stage_file`.
    """

    def __init__(self, path: Path, runtime: Runtime, *, is_file: bool) -> None:
        self.path, self.folder = path, path.with_name(f".{path.name}.tmp")
        self.replaced = path.with_name(f".{path.name}.old")  # name of the replaced folder, if only for a moment
        self.is_rank_0, self._is_file = runtime.rank == 0, is_file

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Removes the temporary folder if the block fails, on rank 0; an OSError there becomes an InputError."""
        try:
            yield
        except BaseException as error:
            if self.is_rank_0:
                shutil.rmtree(self.folder, ignore_errors=True)
            if isinstance(error, OSError):
                path = os.fsdecode(error.filename or self.path)
                message = f"{path}: cannot be written: {error.strerror or error}"
                raise InputError(message, "output.unwritable") from error
            raise

    def publish(self) -> None:
        """Gives the output its final name, in one move where the file system can. Rank 0 only.

        A file is what lies at `folder / path.name`. At every moment the old or the new output is complete on disk.
        """
        assert self.is_rank_0
        if self._is_file:
            (self.folder / self.path.name).replace(self.path)
            remove(self.folder)
        else:
            replace_folder(self.folder, self.path, self.replaced)


def stage_folder(path: Path, runtime: Runtime, marker: str, overwrite: bool) -> StagedOutput:
    """Makes a temporary folder for a folder. Collective.

    Args:
        path: the final folder.
        runtime: the ranks, which share a file system.
        marker: a file by which an earlier output of the same command is recognised.
        overwrite: whether to replace an earlier output.

    Raises:
        InputError: `path` exists and is not to be replaced, or cannot be written.
    """

    def check() -> None:
        if is_free(path):
            return
        if not (path / marker).is_file():
            message = f"{path}: exists and is not an earlier output of this command; choose another --out"
            raise InputError(message, "output.not-ours")
        if not overwrite:
            raise InputError(f"{path}: exists already; add --overwrite to replace it", "output.exists")

    return _stage(StagedOutput(path, runtime, is_file=False), runtime, check)


def stage_file(path: Path, runtime: Runtime, overwrite: bool) -> StagedOutput:
    """Makes a temporary folder for a file: rank 0 leaves it there as `path.name`. Collective. Otherwise as above."""

    def check() -> None:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: exists already and is not a file", "output.not-ours")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists already; add --overwrite to replace it", "output.exists")

    return _stage(StagedOutput(path, runtime, is_file=True), runtime, check)


def _stage(staged: StagedOutput, runtime: Runtime, check: Callable[[], None]) -> StagedOutput:
    def begin() -> None:
        if staged.replaced.exists() and not staged.path.exists():  # a process was killed between two renames
            staged.replaced.rename(staged.path)
        check()
        remove(staged.replaced)
        remove(staged.folder)
        staged.folder.mkdir(parents=True, exist_ok=True)  # on NFS, files that are still open keep it

    on_rank_0(runtime, begin)
    return staged
