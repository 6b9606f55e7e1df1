"""Starts training as its user does, in processes of its own, and breaks it at chosen moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cm3_dist.config.run_files import STEPS

PATIENCE = 120  # seconds for anything a test waits for


def lines(file: Path) -> int:
    """How many it has by now; 0 when it is not there yet."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


class Training:
    """One start of cm3_dist.train, alone (ranks 0) or under torchrun."""

    def __init__(self, ranks: int, arguments: list[str], *launcher: str, env: dict[str, str] | None = None) -> None:
        self.ranks = ranks
        command = [sys.executable, "-m"]
        if ranks:
            command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *launcher, "-m"]
        self.process = subprocess.Popen(
            [*command, "cm3_dist.train", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )

    def rank_pids(self) -> list[int]:
        """Of the ranks that are alive, in the order of the ranks."""
        if not self.ranks:
            return [self.process.pid]
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                found[int(child.environ()["LOCAL_RANK"])] = child.pid
            except (psutil.Error, KeyError):
                continue
        return [found[rank] for rank in sorted(found)]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Returns when it holds; fails with the output when the process ends before, or after PATIENCE."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"waited for {what}; got:\n{self.finish()[1]}")
            time.sleep(0.002)

    def wait_for_steps(self, run: Path, count: int) -> None:
        """Returns when the run has done at least `count` steps."""

        self.wait_for(lambda: lines(run / STEPS) >= count, f"step {count}")

    def finish(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Waits for the end: exit code and output. Kills what is left after `timeout`, and fails."""
        family = [*psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            for pid in (self.process.pid, *(child.pid for child in family)):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            output, _ = self.process.communicate()
            raise AssertionError(f"still running after {timeout} s; output:\n{output}") from None
        return self.process.returncode, output
