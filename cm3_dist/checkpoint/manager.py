"""Checkpoints: saved completely or not at all, verified before loading, independent of the number of ranks.

Tensors are stored with torch.distributed.checkpoint (DCP) under keys that name their part, never a rank, so a
checkpoint saved by W ranks loads on any W' that divides the number of parts. A folder of checkpoints::

    latest, best            names of checkpoints; replaced atomically
    step-00000580/
      progress.json         the caller's progress, and the name of the best checkpoint so far
      .metadata, *.distcp   DCP's files
      SHA256SUMS            digests of all of them

Everything is written to `step-00000580.tmp`, which is renamed when all ranks are done. A checkpoint becomes current
when `latest` is replaced; until then a run resumes from the previous one and uses the best checkpoint recorded there.
An interruption at any moment therefore leaves a consistent state. `best` is for people and scripts only.

A background save copies the tensors and writes the copies from a thread, on its own process group, while training
continues.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from cm3_dist.checkpoint.directory import CheckpointDirectory
from cm3_dist.checkpoint.integrity import check_files, read_record, read_sums
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.errors import AgreedError, InputError
from partition.files import sha256

T = TypeVar("T")


class CheckpointManager:
    """The checkpoints of one run: the newest `keep` and the best. Every method except `failed` is collective.

    Args:
        folder: `checkpoints` in the run folder.
        keep: number of checkpoints to keep, in addition to the best.
        runtime: this rank.
        background: write in a thread; needs memory for a copy of this rank's tensors.
    """

    def __init__(self, folder: Path, keep: int, runtime: Runtime, *, background: bool = False) -> None:
        self.folder, self._runtime, self._background = folder, runtime, background
        self._on_disk = CheckpointDirectory(folder, keep)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

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

        With `background` it exists after `wait`, and an error is raised there or by the next save.

        Args:
            sharded: tensors that only this rank has, under keys that no other rank uses.
            replicated: tensors that are equal on all ranks, under the same keys; written once.
            progress: JSON that `peek` returns; no NaN or infinity.
            step: steps done, which name the checkpoint.
            best: whether it is the best so far; the best one is always kept.

        Returns:
            The folder of the checkpoint.

        Raises:
            InputError: the folder cannot be written, for instance because the disk is full. Earlier checkpoints are
                unchanged.
            ValueError: two ranks, or `sharded` and `replicated`, use the same key.
        """
        import cm3_dist.checkpoint.dcp_io  # noqa: F401  DCP is slow to import: only now, and in the main thread

        self.wait()
        self._check_keys(sharded, replicated)
        tensors = {**sharded, **replicated}
        final = self.folder / f"step-{step:08d}"
        if not self._background:
            self._write(tensors, progress, final, best, self._runtime.control)
            return final
        # A copy even on the CPU, because the next step updates the tables in place.
        staged = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

        def work() -> None:
            try:
                self._write(staged, progress, final, best, self._runtime.saving)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()
        return final

    def wait(self) -> None:
        """Waits for a save in progress, if any.

        Raises:
            InputError: as `save`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def failed(self) -> bool:
        """Whether a background save failed on this rank; all ranks should then call `wait`. Not collective."""
        return self._error is not None

    def newest(self) -> Path | None:
        """The current checkpoint, None if there is none."""
        return self._first_rank(self._on_disk.newest)

    def newest_first(self) -> list[Path]:
        """All checkpoints in the order in which to try them."""
        return self._first_rank(self._on_disk.newest_first)

    def damage(self, path: Path) -> str | None:
        """Verifies the files of a checkpoint; returns the first error as text, None if there is none."""
        from cm3_dist.checkpoint.dcp_io import check_metadata

        def check() -> None:
            self._check_files(path)
            check_metadata(path)

        try:
            self._first_rank(lambda: read_record(path))
            agree_on_error(self._runtime, check)
        except InputError as error:
            return str(error)
        return None

    def best(self) -> Path | None:
        """The checkpoint of the best evaluation, according to the current checkpoint."""
        return self._first_rank(self._on_disk.best)

    def best_of(self, path: Path) -> Path | None:
        """The checkpoint of the best evaluation, according to `path`; it may be damaged or missing."""
        best = self._first_rank(lambda: read_record(path)).best
        return None if best is None else self.folder / Path(best).name

    def go_on_from(self, path: Path | None) -> None:
        """Makes `path` the current checkpoint, even if `latest` is damaged; None: there is none.

        Raises:
            InputError: the folder cannot be written.
        """
        self._first_rank(lambda: self._on_disk.point_at(path))

    def forget_best(self) -> None:
        """Records no best checkpoint in the following ones, because it is lost."""
        self._on_disk.forget_best()

    def peek(self, path: Path) -> dict[str, Any]:
        """Reads the progress that was saved with a checkpoint, without its tensors."""
        return self._first_rank(lambda: read_record(path)).progress

    def load(self, path: Path, sharded: dict[str, Tensor], replicated: dict[str, Tensor]) -> None:
        """Fills the given tensors in place.

        Raises:
            InputError: a file is missing or changed, or a tensor is missing or has another shape or dtype.
        """
        from cm3_dist.checkpoint.dcp_io import check_fit, read_tensors

        agree_on_error(self._runtime, lambda: self._check_files(path))
        wanted = {**sharded, **replicated}
        agree_on_error(self._runtime, lambda: check_fit(path, wanted))
        read_tensors(path, wanted, self._runtime.control)

    def _write(
        self, tensors: dict[str, Tensor], progress: dict[str, Any], final: Path, best: bool, group: dist.ProcessGroup
    ) -> None:
        temporary = final.with_suffix(".tmp")
        self._first_rank(lambda: self._on_disk.begin(temporary), group)
        from cm3_dist.checkpoint.dcp_io import write_tensors

        try:
            write_tensors(temporary, tensors, group)
        except OSError as error:  # the same on all ranks
            raise _cannot_write(temporary, error) from error

        def digests() -> dict[str, str]:
            try:
                return {path.name: sha256(path) for path in temporary.glob(f"__{self._runtime.rank}_*")}
            except OSError as error:
                raise _cannot_write(temporary, error) from error

        own = agree_on_error(self._runtime, digests, group)
        found: list[dict[str, str]] = [{} for _ in range(self._runtime.world_size)]
        dist.all_gather_object(found, own, group=group)
        files = {name: digest for each in found for name, digest in each.items()}
        self._first_rank(lambda: self._on_disk.commit(temporary, final, progress, files, best), group)

    def _first_rank(self, action: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Runs `action` on rank 0; every rank gets its result or its error, so all ranks act on the same data."""
        result: list[Any] = [None]

        def act() -> None:
            if self._runtime.rank == 0:
                try:
                    result[0] = action()
                except OSError as error:
                    raise _cannot_write(self.folder, error) from error

        agree_on_error(self._runtime, act, group)
        dist.broadcast_object_list(result, group_src=0, group=group or self._runtime.control)
        answer: T = result[0]
        return answer

    def _check_keys(self, sharded: dict[str, Tensor], replicated: dict[str, Tensor]) -> None:
        """Checks that keys are unique; DCP would silently keep one of two tensors with the same key."""
        keys: list[list[str]] = [[] for _ in range(self._runtime.world_size)]
        dist.all_gather_object(keys, list(sharded), group=self._runtime.control)
        seen = set(replicated)
        for key in (key for own in keys for key in own):
            if key in seen:
                raise ValueError(f"two tensors of a checkpoint have the key {key!r}")
            seen.add(key)

    def _check_files(self, path: Path) -> None:
        """Compares the digests; each rank checks its share of the files."""
        files = sorted(read_sums(path).items())
        check_files(path, dict(files[self._runtime.rank :: self._runtime.world_size]))


def _cannot_write(path: Path, error: OSError) -> AgreedError:
    """The error for a checkpoint; every caller raises it on all ranks, by itself or through `agree_on_error`."""
    return AgreedError(
        f"{error.filename or path}: the checkpoint cannot be written: {error.strerror or error}", "checkpoint.write"
    )
