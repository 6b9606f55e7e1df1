"""One rank: its number, device and process groups, joined from torchrun's environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.allocator import keep_freed_memory
from cm3_dist.distributed.elastic_store import store_of_this_start
from cm3_dist.distributed.heartbeat import Vigil
from cm3_dist.errors import InputError, LostRankError


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
        keep_freed_memory()
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
