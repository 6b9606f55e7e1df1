"""How the benchmarks take time, memory and bandwidth."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from partition.errors import InputError
from partition.folder.manifest import read_manifest


@dataclass(frozen=True)
class Result:
    """One line of the table. `ratio` is met when it is at least `target`, or at most where `at_most`."""

    name: str
    ratio: float
    target: float
    detail: str
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "met": self.met}


def report(results: list[Result], title: str, output: Path | None) -> None:
    """Prints the table and, if asked, writes it as JSON."""
    table = Table(title=title, title_justify="left")
    for heading in ("what", "measured", "target", "met", "detail"):
        table.add_column(heading)
    for result in results:
        sign, met = "<=" if result.at_most else ">=", "yes" if result.met else "no"
        table.add_row(result.name, f"{result.ratio:.3g}", f"{sign} {result.target:g}", met, result.detail)
    Console(width=160).print(table)
    write_json([result.plain() for result in results], output)


def write_json(content: object, output: Path | None) -> None:
    """Writes it, if asked."""
    if output is not None:
        output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run_command(main: Callable[..., None]) -> None:
    """Runs a benchmark's command line; bad input is one line on stderr and exit code 2."""
    try:
        typer.run(main)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def prepare_if_missing(data: Path, prepared: Path) -> None:
    """Prepares `data` in 4 parts unless `prepared` is there."""
    if not (prepared / "manifest.json").exists():
        command = [sys.executable, "-m", "partition", "build", "--input", str(data), "--parts", "4"]
        subprocess.run([*command, "--output", str(prepared)], check=True)
    read_manifest(prepared)


def seconds(action: Callable[[], object], repeats: int, warm: int = 1) -> float:
    """Median wall-clock seconds of `action`, after `warm` calls that do not count."""
    for _ in range(warm):
        action()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def copy_bandwidth(mebibytes: int = 256) -> float:
    """Bytes a second that torch copies between two buffers too large for any cache: read and written, both counted."""
    source = torch.ones(mebibytes * 2**18)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), repeats=5)


def resident_mib(*, reset_peak: bool = False) -> float:
    """This process's resident memory now (Linux); `peak_mib` counts from here on if `reset_peak`."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") / 1024


def peak_mib() -> float:
    """Its peak. `ru_maxrss` would not do: a new process starts with its parent's, below which nothing shows."""
    return _status("VmHWM") / 1024


def peak_above_now(action: Callable[[], object]) -> float:
    """MiB by which resident memory rose above its value now, at the highest, during `action` (Linux)."""
    before = resident_mib(reset_peak=True)
    action()
    return peak_mib() - before


def _status(name: str) -> int:
    """KiB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
