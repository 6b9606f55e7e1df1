"""A command run as its user runs it, with the memory of all its processes watched from outside."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from partition.errors import InputError

GIB = 2**30
PERIOD = 0.5  # seconds between two looks
SHARE = 0.02  # of a core that they may take: pages are counted one by one


@dataclass(frozen=True)
class Observed:
    """What one command took. Memory is proportional: a page that several processes map counts once."""

    command: str
    seconds: float
    cpu_seconds: float
    peak_gib: float  # of all its processes together, pages of mapped files included
    peak_own_gib: float  # without those: what no other use of the memory could take away
    most_gib: float  # of the process that took most, without mapped files

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def observe(command: list[str], log: Path, **environment: str) -> Observed:
    """Runs it to its end.

    Raises:
        InputError: it failed; the message ends with its last line.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
        watch = _Watch(process.pid)
        code = process.wait()
        watch.stop()
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise InputError(f"{shlex.join(command)}: status {code}; {log}: {lines[-1] if lines else 'no output'}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Observed(_readable(command), round(seconds, 1), round(cpu, 1), *watch.peaks())


def _readable(command: list[str]) -> str:
    """Without the place of the interpreter."""
    first = "python" if command[0] == sys.executable else Path(command[0]).name
    return shlex.join([first, *command[1:]])


class _Watch(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.ended = pid, threading.Event()
        self.peak = self.own = self.most = 0
        self.start()

    def run(self) -> None:
        pause = PERIOD
        while not self.ended.wait(pause):
            begin = time.thread_time()
            self.look()
            pause = max(PERIOD, (time.thread_time() - begin) / SHARE)

    def look(self) -> None:
        whole, own, most = family_memory(self.root)
        self.peak, self.own, self.most = max(self.peak, whole), max(self.own, own), max(self.most, most)

    def stop(self) -> None:
        self.ended.set()
        self.join()

    def peaks(self) -> tuple[float, float, float]:
        return tuple(round(found / GIB, 2) for found in (self.peak, self.own, self.most))  # type: ignore[return-value]


def family_memory(pid: int) -> tuple[int, int, int]:
    """Bytes of a process and its descendants now: all, those of no file, and the most of the latter in one process."""
    try:
        family = psutil.Process(pid)
        found = [_memory(process.pid) for process in [family, *family.children(recursive=True)]]
    except psutil.Error:
        return 0, 0, 0
    return sum(whole for whole, _ in found), sum(own for _, own in found), max(own for _, own in found)


def _memory(pid: int) -> tuple[int, int]:
    """Bytes of a process, shared pages in proportion: all, and those that are no file's."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0  # gone
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return fields["Pss"], fields["Pss"] - fields["Pss_File"]
