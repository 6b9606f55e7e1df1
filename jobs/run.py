"""Runs all points of a sweep on this machine. Finished points are skipped, interrupted ones are resumed::

    python -m jobs.run jobs/sweeps/ablations_short.yaml --parallel 2
    python -m jobs.run jobs/sweeps/paper_grid.yaml --into runs/tiktok_grid data.path=prepared/tiktok

On a machine with several GPUs, points that run at the same time get different GPUs. On a cluster: slurm/sweep.sh.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from tqdm import tqdm

from cm3_dist.errors import INTERRUPTED
from jobs.command import command_line
from jobs.expand import Into, Overrides, SweepFile
from jobs.sweep import Point, read_sweep, sweep_folder

LOGS = "logs"
POLL = 0.2  # seconds


def run(
    sweep: SweepFile,
    overrides: Overrides = None,
    into: Into = None,
    parallel: Annotated[int, typer.Option(min=1, help="points that run at the same time")] = 1,
    ranks: Annotated[int, typer.Option(min=1, help="processes per point (torchrun); a divisor of the parts")] = 1,
    dry: Annotated[bool, typer.Option("--dry-run", help="print the commands and run nothing")] = False,
) -> None:
    """Run all points of a sweep on this machine: skip finished ones, resume interrupted ones."""
    points = read_sweep(sweep, into, overrides)
    todo = [point for point in points if point.state() != "done"]
    if dry:
        for point in todo:
            print(shlex.join(command(point, ranks)))
        return
    print(f"{sweep}: {len(points)} points, {len(points) - len(todo)} done", flush=True)
    folder = sweep_folder(sweep, into)
    failed = _Runner(todo, parallel, ranks, folder / LOGS).run()
    if failed:
        print(f"error: {len(failed)} of {len(todo)} points failed: {'; '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"Next: python -m jobs.report {folder}")


def command(point: Point, ranks: int, threads: int | None = None) -> list[str]:
    """Returns the command that trains a point, from its newest complete checkpoint if there is one."""
    words = [sys.executable, "-m"]
    if ranks > 1:
        words += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    words += ["cm3_dist.train", *point.arguments()]
    if threads and point.settings.machine.threads is None:
        words.append(f"machine.threads={threads}")
    if point.state() == "started":
        words += ["--resume", "auto"]
    return words


def visible_gpus() -> list[str]:
    """Returns this machine's GPUs as CUDA_VISIBLE_DEVICES names them."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def environment(threads: int, gpus: list[str], slot: int, ranks: int) -> dict[str, str]:
    """Returns the environment of the point in `slot`, one of the places for points that run at the same time.

    Slot 0 gets the first `ranks` of the `gpus`, slot 1 the next; slots share GPUs if there are not enough.
    """
    found = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if len(gpus) > 1:
        chosen = [gpus[(slot * ranks + rank) % len(gpus)] for rank in range(min(ranks, len(gpus)))]
        found["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return found


@dataclass(frozen=True)
class _Started:
    point: Point
    slot: int
    log: Path
    at: float  # time.monotonic(), seconds


class _Runner:
    """Keeps `parallel` points running until none is left."""

    def __init__(self, points: list[Point], parallel: int, ranks: int, logs: Path) -> None:
        self._waiting, self._ranks, self._logs = list(reversed(points)), ranks, logs
        self._running: dict[subprocess.Popen[bytes], _Started] = {}
        self._failed: list[str] = []
        self._bar = tqdm(total=len(points), unit="point", disable=None)
        parallel = max(1, min(parallel, len(points)))
        self._free_slots = list(reversed(range(parallel)))
        self._threads = max(1, len(os.sched_getaffinity(0)) // (parallel * ranks))
        self._gpus = visible_gpus() if parallel > 1 else []

    def run(self) -> list[str]:
        """Returns a line for each point that failed."""
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self._waiting or self._running:
                while self._waiting and self._free_slots:
                    self._start(self._waiting.pop(), self._free_slots.pop())
                time.sleep(POLL)
                for process in [process for process in self._running if process.poll() is not None]:
                    self._end(process)
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._stop()
            self._bar.close()
        return self._failed

    def _start(self, point: Point, slot: int) -> None:
        log = self._logs / f"{point.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = command(point, self._ranks, self._threads)
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(words)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(self._threads, self._gpus, slot, self._ranks),
                # Its own process group: Ctrl-C in the terminal reaches this process only, which then stops the points.
                start_new_session=True,
            )
        self._running[process] = _Started(point, slot, log, time.monotonic())
        tqdm.write(f"{point.name}: started, {log}", file=sys.stdout)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        started = self._running.pop(process)
        self._free_slots.append(started.slot)
        code, name = process.returncode, started.point.name
        outcome = "done"
        if code:
            self._failed.append(f"{name} (exit {code}, {started.log})")
            outcome = "interrupted, saved" if code == INTERRUPTED else f"failed, exit {code}"
        tqdm.write(f"{name}: {outcome} after {time.monotonic() - started.at:.0f} s", file=sys.stdout)
        sys.stdout.flush()
        self._bar.update()

    def _stop(self) -> None:
        """Terminates what still runs, and waits for it."""
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    command_line(run)
