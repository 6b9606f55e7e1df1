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
from cm3_dist.distributed.heartbeat import Heartbeat
from cm3_dist.errors import AgreedError, InputError, LostRankError


@dataclass(frozen=True)
class Runtime:
    """One rank and its process groups, one per thread and kind of traffic; all but `group` are gloo.

    Attributes:
        rank: this rank.
        world_size: number of ranks.
        device: of this rank's tensors.
        group: embedding rows and gradients; NCCL on GPUs.
        planning: node ids; used by the planner's thread only, because calls of two threads on one group would mix.
        control: used by the main thread only: errors, checkpoints, small sums, when to stop.
        saving: used by the thread that writes checkpoints only.
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


_joined: list[Runtime] = []  # one entry per open block; all the same
_heartbeats: list[Heartbeat] = []  # one entry if there are several ranks, else none


@contextmanager
def distributed(machine: Machine) -> Iterator[Runtime]:
    """Joins the ranks that torchrun started (without torchrun: a single rank) and leaves them at the end.

    Overlapping blocks, as in a notebook with two open runs, share ranks and device; the last one to end leaves.

    Raises:
        InputError: `machine.device` asks for a GPU that does not exist, or for another device than an open block has.
        LostRankError: another rank did not join, ended or hangs.
    """
    if _joined and machine.device not in ("auto", _joined[0].device.type):
        opened = _joined[0].device.type
        raise InputError(
            f"machine.device={machine.device}: a run on {opened} is open in this process; close it first",
            "device.conflict",
        )
    _joined.append(_joined[0] if _joined else _join(machine))
    failed = False
    try:
        yield _joined[0]
    except BaseException as error:
        failed = True
        for heartbeat in _heartbeats:
            heartbeat.give_up(error)
        raise
    finally:
        _joined.pop()
        if not _joined:
            _stop_heartbeats()
            # After an error with several ranks, connections stay open until the process ends: closing them now would
            # make the other ranks fail first and hide the real message.
            if not failed or dist.get_world_size() == 1:
                dist.destroy_process_group()


def _stop_heartbeats() -> None:
    while _heartbeats:
        _heartbeats.pop().stop()


def _join(machine: Machine) -> Runtime:
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = choose_device(machine, local_rank, local_world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(machine.threads or max(1, cores // local_world))
    timeout = timedelta(seconds=machine.timeout)
    _init_process_group("nccl" if device.type == "cuda" else "gloo", rank, world_size, timeout)
    if world_size > 1:
        # A clone, because a client that waits for a key blocks all other calls.
        _heartbeats.append(Heartbeat(_get_default_store().clone(), rank, world_size, machine.timeout))
        _heartbeats[0].start()
    try:
        planning, control, saving = (_gloo_group(timeout) for _ in range(3))
    except RuntimeError as error:
        for heartbeat in _heartbeats:
            heartbeat.give_up(error)
        raise
    assert dist.group.WORLD is not None
    if device.type == "cuda" and world_size > 1:
        refuse_shared_gpu(control, str(torch.cuda.get_device_properties(device).uuid))
    return Runtime(rank, world_size, device, dist.group.WORLD, planning, control, saving)


def _init_process_group(backend: str, rank: int, world_size: int, timeout: timedelta) -> None:
    if "RANK" not in os.environ:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return
    try:
        store = store_of_this_start(rank, world_size, timeout)
        if store is None:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    except dist.DistError as error:
        reason = str(error).splitlines()[0]
        raise LostRankError(f"rank {rank}: the ranks did not find each other: {reason}", is_reporter=True) from error


def _gloo_group(timeout: timedelta) -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert group is not None
    return group


def choose_device(machine: Machine, local_rank: int, local_world: int) -> torch.device:
    """The device of a rank: the CPU, its one visible GPU, or the GPU with its local rank.

    Raises:
        InputError: there are no GPUs, or too few.
    """
    gpus = torch.cuda.device_count()
    if machine.device == "cpu" or (machine.device == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise InputError(
            "machine.device=cuda: torch sees no GPU here; `python -m cm3_dist.doctor` says why, or set "
            "machine.device=cpu",
            "device.no-gpu",
        )
    if gpus == 1:
        return torch.device("cuda", 0)  # Slurm, Kubernetes and Ray can show each process its own GPU only
    if gpus < local_world:
        raise InputError(
            f"machine.device: {local_world} ranks on this machine but {gpus} GPUs; start torchrun with "
            f"--nproc_per_node={gpus}, or set machine.device=cpu",
            "device.too-few-gpus",
        )
    return torch.device("cuda", local_rank)


def refuse_shared_gpu(control: dist.ProcessGroup, uuid: str) -> None:
    """Raises AgreedError if two ranks have the same GPU, which NCCL does not support. Collective.

    Args:
        control: a gloo group of all ranks.
        uuid: of this rank's GPU.
    """
    uuids = [""] * dist.get_world_size(control)
    dist.all_gather_object(uuids, uuid, group=control)
    if len(set(uuids)) < len(uuids):
        raise AgreedError(
            f"machine.device: {len(uuids)} ranks but {len(set(uuids))} GPUs; start one rank per GPU, or set "
            "machine.device=cpu",
            "device.too-few-gpus",
        )
