"""A process's memory: returning freed blocks to the system, and the peak of each rank."""

from __future__ import annotations

import ctypes
import gc
import resource

import torch
import torch.distributed as dist

from cm3_dist.distributed.runtime import Runtime


def release_free_memory() -> None:
    """Returns freed blocks to the system, where the C library can (glibc).

    glibc keeps freed blocks of up to 32 MiB, per arena of every thread: after steps on a large graph this can double
    the process's memory, just when an evaluation allocates large blocks of other sizes. It takes milliseconds, and
    later steps fault their pages in again, so call it between phases, not between steps.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_memory(runtime: Runtime) -> dict[str, list[float]]:
    """Peak memory in MiB, by rank, of the process (`resident`) and of its tensors on a GPU (`cuda`). Collective."""
    own = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if runtime.device.type == "cuda":
        own["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    ranks: list[dict[str, float]] = [{} for _ in range(runtime.world_size)]
    dist.all_gather_object(ranks, own, group=runtime.control)
    return {kind: [round(rank[kind], 1) for rank in ranks] for kind in own}
