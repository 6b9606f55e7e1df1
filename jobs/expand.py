"""Shows the points of a sweep::

    python -m jobs.expand jobs/sweeps/ablations.yaml               # a table of all points
    python -m jobs.expand jobs/sweeps/ablations.yaml --count       # how many there are
    python -m jobs.expand jobs/sweeps/ablations.yaml --index 4     # the arguments of cm3_dist.train for point 4
    python -m jobs.expand jobs/sweeps/ablations.yaml --todo        # unfinished points, as in sbatch --array=0-3,7

Points are numbered from 0, in the order of the file.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.command import command_line
from jobs.sweep import Point, pick, read_sweep
from partition.errors import InputError

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="sweep file, e.g. jobs/sweeps/ablations.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="settings over those of every point")
]
Into = Annotated[Path | None, typer.Option(metavar="DIR", help="folder of the run folders; by default runs/SWEEP")]


def expand(
    sweep: SweepFile,
    overrides: Overrides = None,
    into: Into = None,
    index: Annotated[int | None, typer.Option(metavar="N", help="print the arguments of point N")] = None,
    count: Annotated[bool, typer.Option("--count", help="print how many points there are")] = False,
    todo: Annotated[
        bool, typer.Option("--todo", help="print the numbers of unfinished points, as sbatch --array takes them")
    ] = False,
    table: Annotated[bool, typer.Option("--list", help="print a table of all points (the default)")] = False,
    unless_done: Annotated[
        bool, typer.Option("--unless-done", help="with --index: print nothing if the point is done")
    ] = False,
) -> None:
    """Show the points of a sweep."""
    if sum([index is not None, count, todo, table]) > 1 or (unless_done and index is None):
        raise InputError(
            "give one of --index (with or without --unless-done), --count, --todo and --list", "expand.options"
        )
    points = read_sweep(sweep, into, overrides)
    if index is not None:
        point = pick(points, sweep, index)
        if not (unless_done and point.state() == "done"):
            print(shlex.join(point.arguments()))
    elif count:
        print(len(points))
    elif todo:
        print(ranges([point.index for point in points if point.state() != "done"]))
    else:
        _show(points)


def ranges(numbers: list[int]) -> str:
    """Returns ascending numbers as `0-3,7`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, span)) for span in found)


def _show(points: list[Point]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("point", "name", "state", "job", "settings"):
        table.add_column(title, justify="right" if title == "point" else "left", no_wrap=title in ("name", "state"))
        table.columns[-1].overflow = "fold"
    for point in points:
        settings = " ".join(text for text in point.overrides if not text.startswith("run.dir="))
        table.add_row(str(point.index), point.name, point.state(), str(point.config or ""), settings)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # one line per point, for grep
    console.print(table)


if __name__ == "__main__":
    command_line(expand)
