"""Saving and restoring a trainer's complete state: the content of a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from cm3_dist.checkpoint.manager import CheckpointManager
from cm3_dist.checkpoint.same_run import check_same_run
from cm3_dist.config.run_files import versions
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.errors import InputError
from cm3_dist.training.progress import Progress
from cm3_dist.training.trainer import Trainer


def save(trainer: Trainer, checkpoints: CheckpointManager, progress: Progress, *, best: bool) -> Path:
    """Saves everything that the next step depends on. Collective.

    Args:
        trainer: its state.
        checkpoints: where to save.
        progress: saved with it.
        best: whether this is the best evaluation so far.

    Returns:
        The folder of the checkpoint.

    Raises:
        InputError: a weight or optimizer state is not finite, or the checkpoint cannot be written.
    """
    record = {
        **progress.plain(),
        "settings": trainer.settings.plain(),
        "versions": versions(),
        "parts": trainer.manifest.num_parts,
        "data": trainer.manifest.digest(),
        "world_size": trainer.runtime.world_size,
        "plan": trainer.model.tables.plan,
    }
    sharded, replicated = _state(trainer)
    agree_on_error(trainer.runtime, lambda: _check_finite(trainer, progress.step, {**sharded, **replicated}))
    return checkpoints.save(sharded, replicated, record, step=progress.step, best=best)


def _check_finite(trainer: Trainer, step: int, tensors: dict[str, Tensor]) -> None:
    """Checks the tensors, because an update can overflow float32 although its gradient was finite."""
    for name, tensor in tensors.items():
        # The sum is not finite if any value is not.
        if not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise InputError(
                f"{step} steps: {name} of rank {trainer.runtime.rank} is not finite, so nothing is saved; the last "
                f"checkpoint is kept; start again with a lower dense.lr (now {trainer.settings.dense.lr:g}) or "
                f"tables.lr (now {trainer.settings.tables.lr:g})",
                "training.not-finite",
            )


def resume_from(trainer: Trainer, checkpoints: CheckpointManager, *, whole: bool) -> Progress:
    """Loads the checkpoint from which a run resumes. Collective.

    Args:
        trainer: filled in place.
        checkpoints: of the run.
        whole: take the newest undamaged checkpoint and name the damaged ones on stderr; without any, start from the
            beginning. Otherwise take the newest, which must be undamaged.

    Raises:
        InputError: as `restore`.
    """
    if not whole:
        return restore(trainer, checkpoints)

    def say(text: str) -> None:
        if trainer.runtime.rank == 0:
            print(text, file=sys.stderr, flush=True)

    without_best = None
    for path in checkpoints.newest_first():
        damage = checkpoints.damage(path)
        if damage is None:
            best = checkpoints.best_of(path)
            damage = None if best in (None, path) else checkpoints.damage(best)
            if damage is None:
                progress = restore(trainer, checkpoints, path)
                checkpoints.go_on_from(path)
                return progress
            without_best = without_best or path
        say(f"passed over: {damage}")
    if without_best is None:
        say(f"{checkpoints.folder}: no whole checkpoint, starting from the beginning")
        checkpoints.go_on_from(None)
        return Progress()
    say(f"resuming from {without_best}, whose best checkpoint is lost; the best of the next evaluations replaces it")
    checkpoints.forget_best()
    before = restore(trainer, checkpoints, without_best)
    checkpoints.go_on_from(without_best)
    # If the last evaluation was at this step, it is repeated.
    return Progress(step=before.step, evaluated_at=min(before.evaluated_at, before.step - 1))


def restore(trainer: Trainer, checkpoints: CheckpointManager, path: Path | None = None) -> Progress:
    """Loads `path`, by default the current checkpoint, on any number of ranks. Collective.

    Returns:
        The progress that was saved with it.

    Raises:
        InputError: there is none, it is damaged, or the data or a setting that affects training has changed.
    """
    path = path or checkpoints.newest()
    if path is None:
        raise InputError(
            f"{checkpoints.folder}: no checkpoint to resume from; start without --resume", "checkpoint.none"
        )
    sharded, replicated = _state(trainer)
    record = checkpoints.peek(path)
    check_same_run(path, record, trainer.manifest, trainer.settings)
    checkpoints.load(path, sharded, replicated)
    return Progress(**{name: record[name] for name in Progress.__dataclass_fields__})


def _state(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Table rows and optimizer state by part, and the replicated encoder with its Adam moments. Shared memory."""
    parts = trainer.shard.parts
    sharded = {
        f"part-{part:05d}/{name}": rows
        for name, values in trainer.model.tables.local_state().items()
        for part, rows in zip(parts, values.chunk(len(parts)), strict=True)
    }
    return sharded, trainer.dense.state()
