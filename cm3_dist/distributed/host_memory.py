"""A process's memory: how glibc keeps and returns freed blocks, and the peak that a rank has reached."""

from __future__ import annotations

import ctypes
import gc
import resource

import torch
import torch.distributed as dist

from cm3_dist.distributed.runtime import Runtime


def release_free_memory() -> None:
    """Returns freed blocks to the system, where the C library can (glibc).

    glibc keeps freed blocks of up to 32 MiB, and every thread's arena its own: after steps on a large graph that is as
    much as the run holds otherwise, just when an evaluation wants large blocks of other sizes. Takes milliseconds, and
    the next steps fault their pages in again: for between phases, not between steps.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_memory(runtime: Runtime) -> dict[str, list[float]]:
    """Most memory that each rank's process, and its tensors on a GPU, have taken so far, in MiB. Collective."""
    own = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if runtime.device.type == "cuda":
        own["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    ranks: list[dict[str, float]] = [{} for _ in range(runtime.world_size)]
    dist.all_gather_object(ranks, own, group=runtime.planning)
    return {kind: [round(rank[kind], 1) for rank in ranks] for kind in own}
