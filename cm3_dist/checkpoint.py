"""Checkpoints: saved whole or not at all, checked before they are loaded, and independent of the number of ranks.

Tensors travel through torch.distributed.checkpoint (DCP) under keys that name the part they belong to, never the rank,
so that any W that divides P loads what any other W saved. A folder of checkpoints::

    latest, best            names of checkpoints; replaced in one move
    step-00000580/
      progress.json         what the caller wants back, the best checkpoint so far, the sha256 of every other file
      .metadata, *.distcp   DCP's files

Everything is written to `step-00000580.tmp`, which is renamed when all ranks are done. Replacing `latest` is what makes
a checkpoint count: until then a run resumes from the one before, and takes that one's word for which is best. So an
interruption at any moment leaves one consistent state. `best` is for people and scripts; nothing here reads it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from cm3_dist.runtime import Runtime, agree_on_error
from partition.errors import InputError
from partition.layout import sha256

PROGRESS, LATEST, BEST = "progress.json", "latest", "best"
METADATA = ".metadata"  # DCP's
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run: the newest `keep` of them, and the best one. Every method is collective."""

    def __init__(self, folder: Path, keep: int, runtime: Runtime) -> None:
        self.folder, self._keep, self._runtime = folder, keep, runtime

    def save(
        self,
        sharded: dict[str, Tensor],
        replicated: dict[str, Tensor],
        progress: dict[str, Any],
        *,
        step: int,
        best: bool,
    ) -> Path:
        """Writes a checkpoint under a temporary name and renames it when every rank is done.

        Args:
            sharded: tensors that only this rank has, under keys that no other rank uses.
            replicated: tensors that are equal on all ranks, under the same keys; written once.
            progress: JSON that `peek` gives back; no NaN or infinity.
            step: names the checkpoint.
            best: whether it is the best so far, which is kept whatever comes later.

        Raises:
            InputError: the folder cannot be written, for instance because the disk is full. The checkpoints before this
                one stay as they are.
            ValueError: two ranks, or `sharded` and `replicated`, use the same key.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = final.with_suffix(".tmp")
        self._check_keys(sharded, replicated)
        self._first_rank(lambda: self._begin(temporary))
        from cm3_dist.checkpoint_tensors import write_tensors  # imports DCP, which the first step need not wait for

        try:
            write_tensors(temporary, {**sharded, **replicated}, self._runtime.control)
        except OSError as error:  # the same on all ranks
            raise _cannot_write(temporary, error) from error
        own = {path.name: sha256(path) for path in temporary.glob(f"__{self._runtime.rank}_*")}
        digests: list[dict[str, str]] = [{} for _ in range(self._runtime.world_size)]
        dist.all_gather_object(digests, own, group=self._runtime.control)
        files = {name: digest for found in digests for name, digest in sorted(found.items())}
        self._first_rank(lambda: self._commit(temporary, final, progress, files, best))
        return final

    def newest(self) -> Path | None:
        """The last whole checkpoint."""
        return self._first_rank(self._newest)

    def newest_first(self) -> list[Path]:
        """All checkpoints that may be whole, those that count first."""
        return self._first_rank(self._newest_first)

    def damage(self, path: Path) -> str | None:
        """What is wrong with the files of a checkpoint or of the best one it refers to; None if nothing is."""
        try:
            record = self._first_rank(lambda: _read_json(path / PROGRESS))
            best = None if record["best"] is None else self._first_rank(lambda: self._beside(path, record["best"]))
            for folder in dict.fromkeys((path, best or path)):
                agree_on_error(self._runtime, lambda folder=folder: self._check_files(folder))  # type: ignore[misc]
        except InputError as error:
            return str(error)
        return None

    def best(self) -> Path | None:
        """The checkpoint of the best evaluation, as of the newest checkpoint."""
        return self._first_rank(self._best)

    def peek(self, path: Path) -> dict[str, Any]:
        """The progress of a checkpoint, without its tensors."""
        progress: dict[str, Any] = self._first_rank(lambda: _read_json(path / PROGRESS)["progress"])
        return progress

    def load(self, path: Path, sharded: dict[str, Tensor], replicated: dict[str, Tensor]) -> None:
        """Fills the given tensors in place.

        Raises:
            InputError: a missing or altered file, or a tensor that is not there, or in another shape or type.
        """
        from cm3_dist.checkpoint_tensors import check_fit, read_tensors

        agree_on_error(self._runtime, lambda: self._check_files(path))
        wanted = {**sharded, **replicated}
        agree_on_error(self._runtime, lambda: check_fit(path, wanted))
        read_tensors(path, wanted, self._runtime.control)

    def _first_rank(self, action: Callable[[], T]) -> T:
        """Lets rank 0 act; every rank gets its result, or its error. What one rank reads, all ranks go by."""
        result: list[Any] = [None]

        def act() -> None:
            if self._runtime.rank == 0:
                try:
                    result[0] = action()
                except OSError as error:
                    raise _cannot_write(self.folder, error) from error

        agree_on_error(self._runtime, act)
        dist.broadcast_object_list(result, group_src=0, group=self._runtime.control)
        answer: T = result[0]
        return answer

    def _check_keys(self, sharded: dict[str, Tensor], replicated: dict[str, Tensor]) -> None:
        """DCP would keep one of two tensors of the same name, without a word."""
        keys: list[list[str]] = [[] for _ in range(self._runtime.world_size)]
        dist.all_gather_object(keys, list(sharded), group=self._runtime.control)
        seen = set(replicated)
        for key in (key for own in keys for key in own):
            if key in seen:
                raise ValueError(f"two tensors of a checkpoint are called {key!r}")
            seen.add(key)

    def _begin(self, temporary: Path) -> None:
        for left_over in self.folder.glob("step-*.tmp"):
            shutil.rmtree(left_over)
        temporary.mkdir(parents=True)

    def _commit(
        self, temporary: Path, final: Path, progress: dict[str, Any], files: dict[str, str], best: bool
    ) -> None:
        before = self._best()
        best_name = final.name if best else before.name if before else None
        files = {METADATA: sha256(temporary / METADATA), **files}
        content = {"progress": progress, "best": best_name, "files": files}
        _write(temporary / PROGRESS, json.dumps(content, indent=1, allow_nan=False) + "\n")
        if final.exists():  # from a session that ended between the next two lines, or from an earlier save of this step
            _remove(final)
        temporary.rename(final)
        _sync(self.folder)
        _write(self.folder / LATEST, final.name + "\n")
        if best_name:
            _write(self.folder / BEST, best_name + "\n")
        steps = sorted(path for path in self.folder.glob("step-*") if path.suffix == "")
        # Checkpoints of later steps are of a course that the run left, when it went on from an earlier one.
        kept = [path for path in steps if path.name <= final.name][-self._keep :]
        for path in steps:
            if path not in kept and path.name != best_name:
                _remove(path)

    def _newest(self) -> Path | None:
        pointer = self.folder / LATEST
        if not pointer.is_file():
            return None
        return self._beside(pointer, pointer.read_text(encoding="utf-8").strip())

    def _newest_first(self) -> list[Path]:
        try:
            newest = self._newest()
        except InputError:
            newest = None
        steps = sorted((path for path in self.folder.glob("step-*") if path.suffix == ""), reverse=True)
        # Those after the one that `latest` names never counted, or are of a course that the run left.
        return sorted(steps, key=lambda path: newest is not None and path.name > newest.name)

    def _best(self) -> Path | None:
        newest = self._newest()
        if newest is None:
            return None
        name = _read_json(newest / PROGRESS)["best"]
        return None if name is None else self._beside(newest / PROGRESS, name)

    def _beside(self, source: Path, name: str) -> Path:
        path = self.folder / name
        if path.parent != self.folder or not path.is_dir():
            raise InputError(f"{source}: names the checkpoint {name!r}, which is not in {self.folder}")
        return path

    def _check_files(self, path: Path) -> None:
        """Compares the digests; the ranks share the files."""
        files = sorted(_read_json(path / PROGRESS)["files"].items())
        for name, digest in files[self._runtime.rank :: self._runtime.world_size]:
            try:
                found = sha256(path / name)
            except OSError as error:
                raise InputError(f"{path / name}: cannot be read ({error.strerror}); resume from another one") from None
            if found != digest:
                raise InputError(f"{path / name}: differs from what was saved (sha256); resume from another checkpoint")


def _remove(path: Path) -> None:
    """Deletes a checkpoint so that half of it is never taken for a whole one."""
    doomed = path.with_suffix(".old.tmp")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Makes renames in `folder` outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"{error.filename or path}: the checkpoint cannot be written: {error.strerror or error}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, so {path.parent} is no whole checkpoint") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not JSON
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    kinds: dict[str, Any] = {"progress": dict, "files": dict, "best": (str, type(None))}
    for name, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(name, 0), kind):
            raise InputError(f"{path}: {name!r} is missing or of the wrong type; resume from another checkpoint")
    if METADATA not in content["files"]:
        raise InputError(f"{path}: 'files' does not list {METADATA}; resume from another checkpoint")
    if bad := [name for name in content["files"] if name != Path(name).name]:
        raise InputError(f"{path}: 'files' names {bad[0]!r}, which is outside the checkpoint")
    return content
