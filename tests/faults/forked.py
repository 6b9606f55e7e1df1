"""Ranks forked from a process that has imported everything: a command starts in a tenth of a second, not in ten."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MODULES = [
    "cm3_dist.train",
    "cm3_dist.training.loop",
    "cm3_dist.checkpoint.manager",
    "cm3_dist.checkpoint.dcp_io",
    "cm3_dist.monitoring.monitor",
    "cm3_dist.monitoring.summary",
    "cm3_dist.monitoring.health_check",
    "cm3_dist.training.trainer_state",
    "cm3_dist.training.trainer",
    "partition.cli",
    "partition.build",
    "partition.folder.verify",
    "torch.utils.tensorboard",
    "faiss",
    "tests.faults.moments",
]


def warm() -> None:
    """Imports what the ranks will need, all but DGL, whose generator depends on the thread that first used it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in MODULES:
        importlib.import_module(name)


@dataclass
class Process:
    """One forked process. `code` is its exit code, or minus the signal that ended it; None while it runs."""

    pid: int
    output: Path
    began: float
    code: int | None = None
    ended: float = 0.0

    def poll(self) -> int | None:
        """Looks whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code, self.ended = os.waitstatus_to_exitcode(status), time.monotonic()
        return self.code

    def kill(self) -> None:
        """Ends it and whatever it has started."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.01)

    def said(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""


def fork(command: Callable[[], None], output: Path, environment: dict[str, str] | None = None) -> Process:
    """Starts `command` in a process and session of its own; `command` ends by returning or by SystemExit."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Process(pid, output, time.monotonic())
    code = 1
    try:
        os.setsid()
        target = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.environ.update(environment or {})
        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait(processes: list[Process], after_first: float, limit: float = 300.0) -> bool:
    """Waits for all to end; `after_first` seconds after the first, what is left is killed, and False comes back."""
    deadline = time.monotonic() + limit
    while any(process.poll() is None for process in processes):
        ended = [process.ended for process in processes if process.code is not None]
        if time.monotonic() > min([deadline, *(moment + after_first for moment in ended)]):
            for process in processes:
                process.kill()
            return False
        time.sleep(0.005)
    return True


def train(arguments: list[str], ranks: int, folder: Path, before: Callable[[int], None] | None = None) -> list[Process]:
    """Starts `python -m cm3_dist.train` on some ranks; `before` is called with its rank in each of them."""
    from cm3_dist.distributed.entry_point import entry_point

    main = sys.modules["cm3_dist.train"].main
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]

    def command(rank: int) -> Callable[[], None]:
        def work() -> None:
            sys.argv = ["cm3_dist.train", *arguments]
            if before is not None:
                before(rank)
            entry_point(main)()

        return work

    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    return [
        fork(
            command(rank),
            folder / f"rank-{rank}.txt",
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)},
        )
        for rank in range(ranks)
    ]
