"""Where a process runs: its rank, device and process groups; the keys of every random draw; how a failure ends it."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.elastic.multiprocessing.errors import record

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.elastic_store import store_of_this_start
from cm3_dist.distributed.heartbeat import Vigil
from cm3_dist.distributed.oom_advice import OutOfMemoryError
from cm3_dist.errors import BAD_INPUT, INTERRUPTED, LOST, Interrupted, LostRankError
from partition.errors import InputError


@dataclass(frozen=True)
class Runtime:
    """One rank and its process groups, one for each thread and kind of traffic; all but `group` are gloo.

    `group` carries rows and gradients; `planning` node ids, from a thread of its own; `control` what the main thread
    agrees on: errors, checkpoints, when to stop; `saving` what is saved in the background.
    """

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup
    planning: dist.ProcessGroup
    control: dist.ProcessGroup
    saving: dist.ProcessGroup

    @property
    def rows_group(self) -> dist.ProcessGroup | None:
        """`group`, or None for one process, which has nothing to send."""
        return self.group if self.world_size > 1 else None


class Stream(IntEnum):
    """What a random draw is for: the first word of its key, so that no two purposes share a sequence."""

    INIT = 0
    ORDER = 1
    NEGATIVES = 2
    NEIGHBOURS = 3
    CURVE = 4
    BASELINE = 5
    EVALUATION = 6


def key(stream: Stream, *words: int) -> int:
    """A 63-bit seed for (stream, seed, epoch, step, part, ...). Never of the rank, so W does not change a draw."""
    return int(np.random.SeedSequence([int(stream), *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(stream: Stream, *words: int) -> np.random.Generator:
    """NumPy generator of that key."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(stream), *words])))


def uniform_by_row(seed: int, rows: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1) that depend only on (seed, row): [n] int64 -> [n] float64.

    A counter-based draw (the splitmix64 finaliser), so that a node's number is the same in whatever set of nodes it is
    asked for: exact and sampled propagation then share their fusion parameters.
    """
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


_joined: list[Runtime] = []  # one entry a block that is open; all the same
_vigil: list[Vigil] = []  # of several ranks: one


@contextmanager
def distributed(machine: Machine) -> Iterator[Runtime]:
    """Joins the ranks that torchrun started (or stands alone without it) and leaves them at the end.

    Blocks that overlap, as in a notebook that has two runs open, share ranks and device; the last one to end leaves.

    Raises:
        InputError: `machine.device` asks for a GPU that is not there, or for another device than an open block has.
        LostRankError: another rank did not come, ended or hangs.
    """
    if _joined and machine.device not in ("auto", _joined[0].device.type):
        there = _joined[0].device.type
        raise InputError(f"machine.device={machine.device}: a run on {there} is open in this process; close it first")
    _joined.append(_joined[0] if _joined else _join(machine))
    fell = False
    try:
        yield _joined[0]
    except BaseException as error:
        fell = True
        for vigil in _vigil:
            vigil.give_up(error)
        raise
    finally:
        _joined.pop()
        if not _joined:
            while _vigil:
                _vigil.pop().end()
        # A rank that fell keeps its connections until it ends: were they closed now, the others would fail of that, and
        # say so before this one has said why.
        if not _joined and (not fell or dist.get_world_size() == 1):
            dist.destroy_process_group()


def _join(machine: Machine) -> Runtime:
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = _device(machine, local_rank, local_world)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(machine.threads or max(1, cores // local_world))
    if device.type == "cpu":
        _keep_freed_memory()
    timeout = timedelta(seconds=machine.timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    else:
        try:
            store = store_of_this_start(rank, world_size, timeout)
            ranks = {} if store is None else {"store": store, "rank": rank, "world_size": world_size}
            dist.init_process_group(backend, timeout=timeout, **ranks)
        except dist.DistError as error:
            reason = str(error).splitlines()[0]
            raise LostRankError(f"rank {rank}: the ranks did not find each other: {reason}", True) from error
    if world_size > 1:
        _vigil.append(Vigil(_get_default_store(), rank, world_size, machine.timeout))
    try:
        planning, control, saving = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(3))
    except RuntimeError as error:
        for vigil in _vigil:
            vigil.give_up(error)
        raise
    assert dist.group.WORLD is not None
    assert planning is not None
    assert control is not None
    assert saving is not None
    return Runtime(rank, world_size, device, dist.group.WORLD, planning, control, saving)


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks of up to 32 MiB (its limit) for the next step instead of unmapping them.

    Otherwise every activation of a step is mapped, zeroed page by page and unmapped again: a fifth of a step's time.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 1 << 30)
    except (OSError, AttributeError):
        return  # another C library; only slower


def _device(machine: Machine, local_rank: int, local_world: int) -> torch.device:
    gpus = torch.cuda.device_count()
    if machine.device == "cpu" or (machine.device == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise InputError(
            "machine.device=cuda: torch sees no GPU here; `python -m cm3_dist.doctor` says why, or set "
            "machine.device=cpu"
        )
    if gpus < local_world:
        raise InputError(
            f"machine.device: {local_world} ranks on this machine but {gpus} GPUs; start torchrun with "
            f"--nproc_per_node={gpus}, or set machine.device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def agree_on_error(runtime: Runtime, action: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """Runs `action` on every rank; when it fails on one with InputError, every rank raises that same error.

    Otherwise the ranks whose own files are whole would wait for the one that stopped. `group` is `control` by default,
    which belongs to the main thread.
    """
    error: str | None = None
    result = None
    try:
        result = action()
    except InputError as caught:
        error = str(caught)
    errors: list[str | None] = [None] * runtime.world_size
    dist.all_gather_object(errors, error, group=group or runtime.control)
    first = next((text for text in errors if text is not None), None)
    if first is not None:
        raise InputError(first)
    return result


def peak_memory(runtime: Runtime) -> dict[str, list[float]]:
    """Most memory that each rank's process, and its tensors on a GPU, have taken so far, in MiB. Collective."""
    own = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if runtime.device.type == "cuda":
        own["cuda"] = torch.cuda.max_memory_allocated() / 2**20
    ranks: list[dict[str, float]] = [{} for _ in range(runtime.world_size)]
    dist.all_gather_object(ranks, own, group=runtime.planning)
    return {kind: [round(rank[kind], 1) for rank in ranks] for kind in own}


def entry_point(main: Callable[[], Any]) -> Callable[[], None]:
    """Wraps a command's `main`: one line on stderr, exit code 2 for InputError, 69 for a lost rank, 75 for Interrupted.

    Rank 0 speaks for all, except where a rank's own memory ran out; of a lost rank speaks the first that is left.

    Any other exception is recorded for torchrun, which ends all ranks and shows the message of the first to fail.
    """

    @record
    def run() -> None:
        try:
            main()
        except InputError as error:
            if os.environ.get("RANK", "0") == "0" or isinstance(error, OutOfMemoryError):
                print(f"error: {error}", file=sys.stderr, flush=True)
            else:
                time.sleep(1)  # torchrun ends the other ranks as soon as one ends: rank 0 speaks first
            sys.exit(BAD_INPUT)
        except LostRankError as error:
            if error.speaks:
                print(f"error: {error}", file=sys.stderr, flush=True)
            time.sleep(1)  # as above; and rank 0 may keep the store that the others are looking into
            sys.exit(LOST)
        except Interrupted as end:
            if os.environ.get("RANK", "0") == "0":
                print(end, file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)

    return run
