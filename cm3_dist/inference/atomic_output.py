"""Files and folders that a command writes: under a temporary name until all ranks are done, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cm3_dist.distributed.collectives import on_rank_0
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.errors import InputError


@contextmanager
def new_folder(path: Path, runtime: Runtime, marker: str, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes the name `path` when the block has ended well on every rank. Collective.

    Args:
        path: what the folder is to be called.
        runtime: the ranks; they share a file system.
        marker: the file by which a folder that may be replaced is known.
        overwrite: replace such a folder.

    Raises:
        InputError: something lies at `path` that is not to be replaced, or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")

    def begin() -> None:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            if not (path / marker).is_file():
                raise InputError(f"{path}: exists and is not an earlier output of this command; choose another --out")
            if not overwrite:
                raise InputError(f"{path}: exists already; add --overwrite to replace it")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def end() -> None:
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)

    on_rank_0(runtime, begin)
    try:
        yield temporary
        on_rank_0(runtime, end)
    finally:
        if runtime.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_file(path: Path, runtime: Runtime, overwrite: bool) -> Iterator[Path]:
    """The same for one file: a temporary folder in which the block leaves, on rank 0, the file `path.name`."""
    temporary = path.with_name(f".{path.name}.tmp")

    def begin() -> None:
        if path.exists() and not (overwrite and path.is_file()):
            raise InputError(f"{path}: exists already; " + ("add --overwrite" if path.is_file() else "it is no file"))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    on_rank_0(runtime, begin)
    try:
        yield temporary
        on_rank_0(runtime, lambda: (temporary / path.name).replace(path))
    finally:
        if runtime.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
