"""Starts training as its user does, in processes of its own, and interrupts it at chosen steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from cm3_dist.config.run_files import STEPS

PATIENCE = 300  # seconds for anything that a test waits for: only a guard against hanging


def lines(file: Path) -> int:
    """How many it has by now; 0 when it is not there yet."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


class Training:
    """One start of cm3_dist.train, alone (ranks 0) or under torchrun.

    Args:
        ranks: of torchrun; 0 without it.
        arguments: of cm3_dist.train.
        launcher: options of torchrun.
        held_at: every rank waits after this many steps, the first time, until `release`.
    """

    def __init__(self, ranks: int, arguments: list[str], *launcher: str, held_at: int | None = None) -> None:
        self.ranks = ranks
        module, env = "cm3_dist.train", {**os.environ, "OMP_NUM_THREADS": "1"}
        self._fifos: list[Path] = []
        self._writers: list[int] = []
        if held_at is not None:
            module = "tests.support.held_training"
            folder = Path(tempfile.mkdtemp(prefix="held-"))
            self._fifos = [folder / str(rank) for rank in range(max(1, ranks))]
            for fifo in self._fifos:
                os.mkfifo(fifo)
            env["HOLD"] = f"{held_at}:{folder}"
        command = [sys.executable, "-m"]
        if ranks:
            command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *launcher, "-m"]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        self.process = subprocess.Popen(
            [*command, module, *arguments],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=env,
        )

    def output(self) -> str:
        """What it has printed so far."""
        # The processes share this file's position: read without moving it.
        return os.pread(self._output.fileno(), 1 << 24, 0).decode(errors="replace")

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

    def wait_until_held(self) -> None:
        """Returns when every rank waits at the step `held_at`."""

        def held() -> bool:
            try:
                self._writers.append(os.open(self._fifos[len(self._writers)], os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # no reader yet
                return False
            return len(self._writers) == len(self._fifos)

        self.wait_for(held, "all ranks to be held")

    def release(self) -> None:
        """Lets the ranks go on."""
        for fifo in self._fifos:
            fifo.unlink()
        for writer in self._writers:
            os.close(writer)
        self._writers = []

    def finish(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Waits for the end: exit code and output. Kills what is left after `timeout`, and fails."""
        family = [*psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            for pid in (self.process.pid, *(child.pid for child in family)):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.wait()
            raise AssertionError(f"still running after {timeout} s; output:\n{self.output()}") from None
        return code, self.output()
