"""What a rank really sends and holds, seen from outside the program's own counters."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.distributed.traffic import traffic
from cm3_dist.training.trainer import Trainer


class Wire:
    """Bytes handed to torch's collectives for other ranks, whoever calls them: the program or TorchRec."""

    def __init__(self) -> None:
        self.sent = 0

    def take(self) -> int:
        sent, self.sent = self.sent, 0
        return sent

    def all_to_all(self, given: Any, splits: Any, group: Any) -> None:
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        own = splits[rank] if splits else given.shape[0] // world
        self.sent += (given.shape[0] - own) * (given.nbytes // max(given.shape[0], 1))

    def all_reduce(self, tensor: Any, group: Any) -> None:
        world = dist.get_world_size(group)
        self.sent += -(-2 * tensor.nbytes * (world - 1) // world)

    def all_gather(self, given: Any, group: Any) -> None:
        self.sent += given.nbytes * (dist.get_world_size(group) - 1)

    def broadcast(self, tensor: Any, source: int, group: Any) -> None:
        if source == dist.get_rank(group):
            self.sent += tensor.nbytes * (dist.get_world_size(group) - 1)


@contextmanager
def wire() -> Iterator[Wire]:
    """Listens at torch.distributed."""
    seen = Wire()
    names = ("all_to_all_single", "all_reduce", "all_gather_single", "broadcast")
    real: dict[str, Callable[..., Any]] = {name: getattr(dist, name) for name in names}

    def all_to_all_single(output: Any, input: Any, *args: Any, group: Any = None, **named: Any) -> Any:
        splits = named.get("input_split_sizes", args[1] if len(args) > 1 else None)
        seen.all_to_all(input, splits, group)
        return real["all_to_all_single"](output, input, *args, group=group, **named)

    def all_reduce(tensor: Any, op: Any = dist.ReduceOp.SUM, group: Any = None, **named: Any) -> Any:
        seen.all_reduce(tensor, group)
        return real["all_reduce"](tensor, op, group=group, **named)

    def all_gather_single(output: Any, given: Any, group: Any = None, **named: Any) -> Any:
        seen.all_gather(given, group)
        return real["all_gather_single"](output, given, group=group, **named)

    def broadcast(tensor: Any, src: Any = None, group: Any = None, group_src: Any = None, **named: Any) -> Any:
        seen.broadcast(tensor, group_src if src is None else src, group)
        return real["broadcast"](tensor, src, group=group, group_src=group_src, **named)

    try:
        for replacement in (all_to_all_single, all_reduce, all_gather_single, broadcast):
            setattr(dist, replacement.__name__, replacement)
        yield seen
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def observed_traffic(settings: list[Settings], steps: int) -> list[list[dict[str, int]]]:
    """On one rank: for each of the settings, bytes sent by kind in every step, then in an evaluation.

    "on the wire" is the sum that was handed to torch.
    """
    found = []
    with distributed(settings[0].machine) as runtime, wire() as seen:
        for setting in settings:
            trainer = Trainer(setting, runtime)
            seen.take(), traffic.take()
            counted = []
            plans = trainer.planner.plans(0, 0, steps)
            for _ in range(steps):
                trainer.step(next(plans))
                counted.append({**traffic.take(), "on the wire": seen.take()})
            trainer.evaluator.rank(trainer.final_rows(), "validation")
            counted.append({**traffic.take(), "on the wire": seen.take()})
            found.append(counted)
    return found


class Watch:
    """Peaks of this process's anonymous memory, in MiB (see `memory_watch`)."""

    def __init__(self) -> None:
        path = Path(__file__).with_name("memory_watch.py")
        command = [sys.executable, "-S", str(path), str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def take(self) -> float:
        """The peak since the last call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def observed_memory(settings: Settings, steps: int) -> dict[str, float]:
    """On one rank: MiB at the highest while it starts, loads, trains, evaluates and saves, as `cm3_dist.train` does."""
    from cm3_dist.checkpoint.manager import CheckpointManager
    from cm3_dist.training.progress import Progress
    from cm3_dist.training.trainer_state import save

    watch, peaks = Watch(), {}
    try:
        with distributed(settings.machine) as runtime:
            importlib.import_module("cm3_dist.checkpoint.dcp_io")  # training imports it later

            peaks["imported"] = watch.take()
            trainer = Trainer(settings, runtime)
            peaks["load"] = watch.take()
            plans = trainer.planner.epoch(0, 0, steps)
            for plan in plans:
                trainer.step(plan)
            del plan, plans
            peaks["step"] = watch.take()
            trainer.evaluator.rank(trainer.final_rows(), "validation")
            peaks["evaluate"] = watch.take()
            save(
                trainer,
                CheckpointManager(settings.run.dir / "checkpoints", 2, runtime),
                Progress(step=steps),
                best=True,
            )
            peaks["checkpoint"] = watch.take()
    finally:
        watch.close()
    return peaks
