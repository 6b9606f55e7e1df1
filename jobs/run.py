"""Runs all points of a sweep on this machine; what is done is skipped, what was begun is resumed::

    python -m jobs.run jobs/sweeps/ablations_short.yaml --parallel 2
    python -m jobs.run jobs/sweeps/paper_grid.yaml --into runs/tiktok_grid data.path=prepared/tiktok

On a cluster: slurm/sweep.sbatch.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from tqdm import tqdm

from cm3_dist.errors import INTERRUPTED
from jobs.command import command_line
from jobs.expand import Into, Overrides, SweepFile
from jobs.sweep import Point, read_sweep

LOGS = "logs"
POLL = 0.2  # seconds


def run(
    sweep: SweepFile,
    overrides: Overrides = None,
    into: Into = None,
    parallel: Annotated[int, typer.Option(min=1, help="points at a time")] = 1,
    ranks: Annotated[int, typer.Option(min=1, help="processes a point, by torchrun; a divisor of the parts")] = 1,
    dry: Annotated[bool, typer.Option("--dry-run", help="print the commands and run nothing")] = False,
) -> None:
    """Run all points of a sweep on this machine: skip what is done, resume what was begun."""
    points = read_sweep(sweep, into, overrides)
    todo = [point for point in points if point.state() != "done"]
    if dry:
        for point in todo:
            print(shlex.join(command(point, ranks)))
        return
    print(f"{sweep}: {len(points)} points, {len(points) - len(todo)} done", flush=True)
    failed = _Runner(todo, parallel, ranks).run()
    folder = points[0].folder.parent
    if failed:
        print(f"error: {len(failed)} of {len(todo)} points failed: {'; '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"Next: python -m jobs.report {folder}")


def command(point: Point, ranks: int, threads: int | None = None) -> list[str]:
    """The command that trains a point, from its newest whole checkpoint if there is one."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    resume = ["--resume", "auto"] if point.state() == "started" else []
    few = [f"machine.threads={threads}"] if threads and point.settings.machine.threads is None else []
    return [sys.executable, *launcher, "-m", "cm3_dist.train", *point.arguments(), *few, *resume]


class _Runner:
    """Keeps `parallel` points running until none is left."""

    def __init__(self, points: list[Point], parallel: int, ranks: int) -> None:
        self._waiting, self._parallel, self._ranks = list(reversed(points)), parallel, ranks
        self._running: dict[subprocess.Popen[bytes], tuple[Point, float]] = {}  # the point and when it began
        self._failed: list[str] = []
        self._bar = tqdm(total=len(points), unit="point", disable=None)
        cores = len(os.sched_getaffinity(0))
        self._threads = max(1, cores // (min(parallel, len(points) or 1) * ranks))

    def run(self) -> list[str]:
        """Returns a line for each point that failed."""
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._parallel:
                    self._start(self._waiting.pop())
                time.sleep(POLL)
                for process in [process for process in self._running if process.poll() is not None]:
                    self._end(process)
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._stop()
            self._bar.close()
        return self._failed

    def _start(self, point: Point) -> None:
        log = self._log(point)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = command(point, self._ranks, self._threads)
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(words)}\n".encode())
            output.flush()
            # A group of its own: Ctrl-C in the terminal reaches this process alone, which ends the points in order.
            environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        self._running[process] = point, time.monotonic()
        tqdm.write(f"{point.name}: started, {log}", file=sys.stdout)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        point, began = self._running.pop(process)
        seconds = f"after {time.monotonic() - began:.0f} s"
        if process.returncode:
            self._failed.append(f"{point.name} (exit {process.returncode}, {self._log(point)})")
            outcome = (
                "interrupted, saved" if process.returncode == INTERRUPTED else f"failed, exit {process.returncode}"
            )
            tqdm.write(f"{point.name}: {outcome} {seconds}", file=sys.stdout)
        else:
            tqdm.write(f"{point.name}: done {seconds}", file=sys.stdout)
        sys.stdout.flush()
        self._bar.update()

    def _stop(self) -> None:
        """Asks what still runs to end, and waits for it."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait()

    @staticmethod
    def _log(point: Point) -> Path:
        return point.folder.parent / LOGS / f"{point.name}.log"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    command_line(run)
