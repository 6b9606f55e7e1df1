"""The sizes that other trainers report as out of memory, from synthesis to the last metric::

    python -m benchmarks.scale --headline 2m          # 2M users x 2M items x 15M interactions
    python -m benchmarks.scale --headline 1m          # 1M x 300k x 42M
    python -m benchmarks.scale --headline 2m --json scale-2m.json      # the results so far, together

Each stage writes FOLDER/HEADLINE/results/STAGE.json when it is done and is not done again (`--again STAGE` does). The
2M data is `--base`, a real data set, grown with its own structure; the 1M data has planted tastes. Needs 24 GB of
memory, 30 GB of disk, hours on 2 cores; nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import scale_figures, scale_stages
from benchmarks.scale_stages import HEADLINES, STAGES, Place
from benchmarks.timing import Result, report, run_command, write_json
from partition.errors import InputError


def main(
    headline: Annotated[str, typer.Option(help=f"one of: {', '.join(HEADLINES)}")],
    folder: Annotated[Path, typer.Option(help="where data, runs and results go")] = Path("scale"),
    base: Annotated[Path, typer.Option(help="real data set to grow")] = Path("../shared/data/baby"),
    only: Annotated[list[str] | None, typer.Option(help=f"one of: {', '.join(STAGES)}; may be repeated")] = None,
    again: Annotated[list[str] | None, typer.Option(help="do this stage again; may be repeated")] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="train so many steps of the epoch and scale their median")
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="write all results there")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw ranks, growth and cut there, as PNG")] = None,
) -> None:
    """Measure preparation, training and evaluation of a graph of that size, stage by stage."""
    if headline not in HEADLINES:
        raise InputError(f"--headline {headline!r}: one of {', '.join(HEADLINES)}")
    for name in [*(only or []), *(again or [])]:
        if name not in STAGES:
            raise InputError(f"stage {name!r}: one of {', '.join(STAGES)}")
    place = Place(HEADLINES[headline], folder.absolute() / headline, base.absolute(), steps)
    place.results.mkdir(parents=True, exist_ok=True)
    for name in only or place.headline.stages:
        path = place.results / f"{name}.json"
        if path.exists() and name not in (again or []):
            continue
        print(f"{headline} {name} ...", file=sys.stderr, flush=True)
        found = STAGES[name](place)
        write_json(found, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(place.results.glob("*.json"))}
    report(targets(results), f"{headline}: {place.headline.title}", None)
    write_json({"headline": headline, "machine": scale_stages.machine(), **results}, output)
    if plot is not None and {"ranks", "growth", "cut"} & results.keys():
        scale_figures.draw(results, plot)


def targets(results: dict[str, Any]) -> list[Result]:
    """What was aimed at, beside what was measured so far."""
    found: list[Result] = []

    def add(name: str, measured: float, target: float, detail: str) -> None:
        found.append(Result(name, round(measured, 3), target, detail, at_most=True))

    if "prepare" in results:
        one = results["prepare"]
        add("prepare, minutes", one["seconds"] / 60, 40, f"{one['cpu_seconds'] / 60:.1f} of CPU")
        add("prepare, GiB", one["peak_gib"], 12, f"{one['peak_own_gib']} without mapped files")
    if "train" in results:
        one, where = results["train"], "all ranks together"
        limits = (40, 16) if "epoch_seconds" in one else (float("inf"), 20)
        if "epoch_seconds" in one:
            add(
                "epoch, minutes",
                one["epoch_seconds"] / 60,
                limits[0],
                f"{one['steps']} of {one['steps_an_epoch']} steps",
            )
        add("training, GiB", one["peak_gib"], limits[1], f"{where}; {one['peak_own_gib']} without mapped files")
    if "ranks" in results:
        peaks = results["ranks"]["resident_mib"]
        add("memory a rank, W=4 / W=1", max(peaks["4"]) / max(peaks["1"]), 0.35, f"{max(peaks['4']):,.0f} MiB")
    if "cut" in results:
        for name, sent in results["cut"].items():
            detail = f"{sent['metis'] / 2**20:,.1f} MiB a step and rank"
            add(f"bytes, METIS / random: {name}", sent["metis"] / sent["random"], 0.6, detail)
    if "growth" in results:
        add("epoch time ~ interactions ^", results["growth"]["exponent"], 1.1, "1M to 15M")
    return found


if __name__ == "__main__":
    run_command(main)
