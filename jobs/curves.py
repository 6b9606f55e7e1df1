"""Draws a sweep: the validation metric against one setting, a panel per data set, a line per variant::

    python -m jobs.curves runs/gamma --x loss.gamma --picture gamma.png
    python -m jobs.curves runs/noise --x data.path --label "share of wrong rows" --picture noise.svg

Points are means over seeds, bars their standard deviations. A run's variant is the part of its folder's name before the
first comma. A path is placed at the number it ends in (`prepared/baby_noise0.25` at 0.25, `prepared/baby` at 0). Any
other word, such as `loss.gamma=auto`, becomes a horizontal line.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from jobs.collect import Run, by_data, collect_finished
from jobs.command import command_line
from jobs.style import COLOURS, MATPLOTLIB
from partition.errors import InputError
from partition.files import atomic_file

Values = dict[float | str, list[float]]  # position on the axis, or a word -> the metric of every seed


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders, or folders that hold some")],
    x: Annotated[str, typer.Option(metavar="KEY.SUB", help="the setting along the axis")],
    picture: Annotated[Path, typer.Option(metavar="FILE", help="the picture to write: .png, .svg or .pdf")],
    metric: Annotated[str, typer.Option(help="the metric to draw")] = "recall@20",
    label: Annotated[str | None, typer.Option(help="of the axis; by default the setting's name")] = None,
) -> None:
    """Draw the validation metric of finished runs against a setting."""
    found, _ = collect_finished(runs)
    if missing := [run.folder for run in found if x not in run.settings or metric not in run.content["validation"]]:
        raise InputError(f"{missing[0]}: has no setting {x} or no validation {metric}", "curves.missing")
    studies = {data: by_variant(members, x, metric) for data, members in by_data(found).items()}
    draw(studies, label or x, f"validation {metric}", picture)
    print(f"wrote {picture}")


def by_variant(runs: list[Run], x: str, metric: str) -> dict[str, Values]:
    """Returns the metric's values per variant and position on the axis."""
    found: dict[str, Values] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        variant = run.folder.name.split(",")[0]
        if "=" in variant:  # the sweep has a grid and no variants
            variant = ""
        found[variant][_position(run.settings[x])].append(run.content["validation"][metric])
    return found


def _position(value: Any) -> float | str:
    if isinstance(value, (int, float)):
        return float(value)
    number = re.search(r"\d+(\.\d+)?$", str(value))
    if number:
        return float(number[0])
    return 0.0 if "/" in str(value) else str(value)


def draw(studies: dict[str, dict[str, Values]], label: str, metric: str, picture: Path) -> None:
    """Writes the picture: a panel per study."""
    import matplotlib
    from matplotlib.figure import Figure

    variants = dict.fromkeys(variant for study in studies.values() for variant in study)
    colours = {variant: COLOURS[number % len(COLOURS)] for number, variant in enumerate(variants)}
    with matplotlib.rc_context(MATPLOTLIB):
        figure = Figure(figsize=(5 * len(studies), 3.5), layout="constrained")
        panels = figure.subplots(1, len(studies), squeeze=False)[0]
        for axes, (data, study) in zip(panels, studies.items(), strict=True):
            for variant, values in study.items():
                _draw_variant(axes, variant, values, colours[variant])
            axes.set(title=data, xlabel=label, ylabel=metric)
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        picture.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(picture) as temporary:
            figure.savefig(temporary, format=picture.suffix.removeprefix(".") or "png")


def _draw_variant(axes: Any, variant: str, values: Values, colour: str) -> None:
    positions = sorted(position for position in values if isinstance(position, float))
    heights = [mean(values[position]) for position in positions]
    bars = [stdev(values[position]) if len(values[position]) > 1 else 0.0 for position in positions]
    axes.errorbar(positions, heights, bars, marker="o", capsize=3, color=colour, label=variant or None)
    for word in (position for position in values if isinstance(position, str)):
        axes.axhline(mean(values[word]), linestyle="--", color=colour, label=f"{variant} {word}".strip())


if __name__ == "__main__":
    command_line(curves)
