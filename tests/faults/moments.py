"""Moments of a command at which a signal can be sent to its own process, by functions that are entered then."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Moment -> the function whose time it is, as "module:qualified name"; of a plain function, the module that calls it.
PLACES = {
    "start": "cm3_dist.training.trainer:Trainer.__init__",
    "step": "cm3_dist.training.trainer:Trainer.step",
    "save": "cm3_dist.checkpoint.manager:CheckpointManager._write",
    "commit": "cm3_dist.checkpoint.directory:CheckpointDirectory.commit",  # rank 0 only
    "evaluation": "cm3_dist.training.loop:TrainingLoop._validate",
    "test": "cm3_dist.training.loop:TrainingLoop.test",
    "result": "cm3_dist.training.loop:write_result",  # rank 0 only
    "preparation": "partition.build:build",
    "writing": "partition.build:write_prepared",
}


@dataclass(frozen=True)
class Fault:
    """A signal to one rank, some time after it has entered a place for the n-th time."""

    moment: str
    entry: int  # from 1
    share: float  # of the time that the place usually takes
    number: int
    rank: int

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"{name} to rank {self.rank}, {self.share:.2f} into {self.moment} {self.entry}"


def arm(fault: Fault, usual: dict[str, float], note: Path) -> None:
    """Makes this process send itself the fault's signal; `note` then holds whether the place was still in work."""
    inside = threading.Event()
    entries = [0]

    def strike() -> None:
        time.sleep(fault.share * usual[fault.moment])
        note.write_text("inside" if inside.is_set() else "after")
        os.kill(os.getpid(), fault.number)

    def entered() -> None:
        entries[0] += 1
        inside.set()
        if entries[0] == fault.entry:
            threading.Thread(target=strike, name="fault", daemon=True).start()

    _wrap(fault.moment, entered, lambda _: inside.clear())


def measure(log: Path) -> None:
    """Makes this process write down the seconds that each place takes, a line each."""

    def wrap(moment: str) -> None:
        began = [0.0]

        def entered() -> None:
            began[0] = time.monotonic()

        def left(_: Any) -> None:
            with log.open("a") as lines:
                lines.write(f"{moment} {time.monotonic() - began[0]}\n")

        _wrap(moment, entered, left)

    for moment in PLACES:
        wrap(moment)


def usual(log: Path) -> dict[str, tuple[float, int]]:
    """Mean seconds of each place and how often it was entered, as `measure` wrote them."""
    found: dict[str, list[float]] = {}
    for line in log.read_text().splitlines():
        moment, seconds = line.split()
        found.setdefault(moment, []).append(float(seconds))
    return {moment: (sum(values) / len(values), len(values)) for moment, values in found.items()}


def _wrap(moment: str, entered: Any, left: Any) -> None:
    module, _, path = PLACES[moment].partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        entered()
        try:
            return function(*args, **kwargs)
        finally:
            left(moment)

    setattr(owner, name, wrapped)
