"""Explains out-of-memory errors: one line with the settings that need less memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cm3_dist.config.settings import Settings
from cm3_dist.errors import OutOfMemoryError
from partition.folder.manifest import Manifest, read_manifest

_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory|bad_alloc")


@contextmanager
def explained(settings: Settings, rank: int, *, training: bool = True) -> Iterator[None]:
    """Turns an allocation that fails in the block into `OutOfMemoryError`, with settings that need less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own are RuntimeErrors
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not (on_gpu or isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
            raise
        where = "GPU memory" if on_gpu else "memory"
        hint = advice(settings, read_manifest(settings.data.path)) if training else inference_advice(settings)
        raise OutOfMemoryError(f"rank {rank}: out of {where}; {hint}", "memory.exhausted") from error


def inference_advice(settings: Settings) -> str:
    """The settings that lower a rank's memory in the commands that use a finished run."""
    blocks = f"evaluate.user_block below {settings.evaluate.user_block}"
    return f"try more ranks, {blocks}, evaluate.item_block below {settings.evaluate.item_block}"


def advice(settings: Settings, manifest: Manifest) -> str:
    """The settings that lower a rank's memory, the most effective for this data first."""
    widest = max(manifest.modalities, key=lambda modality: modality.dim)
    changes = ["more ranks", f"train.batch_size below {settings.train.batch_size}", "propagation.mode=sampled"]
    if widest.dim > 256:
        changes.insert(0, f"narrower features (prepare again with --pca {widest.name}=256, now {widest.dim} wide)")
    return "try " + ", ".join(changes)
