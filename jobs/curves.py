"""A picture of a sweep: the validation metric against one setting, a panel a data set, a line a variant::

    python -m jobs.curves runs/gamma runs/gamma_tiktok --x loss.gamma --picture gamma.png
    python -m jobs.curves runs/noise runs/noise_tiktok --x data.path --label "share of wrong rows" --picture noise.png

Points are means over seeds, bars their standard deviations. A variant is what a run folder's name says before its first
comma. Of a path the number at its end counts (`prepared/baby_noise0.25` is .25, `prepared/baby` 0); any other word, as
`loss.gamma=auto`, is a level line.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from jobs.collect import Run, collect_finished
from jobs.command import command_line
from partition.errors import InputError

Values = dict[float | str, list[float]]  # position -> the metric, a seed each


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders, or folders that hold some")],
    x: Annotated[str, typer.Option(metavar="KEY.SUB", help="the setting along the axis")],
    picture: Annotated[Path, typer.Option(metavar="FILE.png", help="where to")],
    metric: Annotated[str, typer.Option(help="which")] = "recall@20",
    label: Annotated[str | None, typer.Option(help="of the axis, if not the setting's name")] = None,
) -> None:
    """Draw the validation metric of finished runs against a setting."""
    found, _ = collect_finished(runs)
    if missing := [run.folder for run in found if x not in run.settings or metric not in run.content["validation"]]:
        raise InputError(f"{missing[0]}: has no setting {x} or no validation {metric}")
    draw(by_variant(found, x, metric), label or x, f"validation {metric}", picture)
    print(f"wrote {picture}")


def by_variant(runs: list[Run], x: str, metric: str) -> dict[str, dict[str, Values]]:
    """Data set -> variant -> position on the axis -> values."""
    found: dict[str, dict[str, Values]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in runs:
        variant = run.folder.name.split(",")[0]
        variant = "" if "=" in variant else variant  # a grid alone
        found[run.data][variant][_position(run.settings[x])].append(run.content["validation"][metric])
    return found


def _position(value: Any) -> float | str:
    if isinstance(value, (int, float)):
        return float(value)
    number = re.search(r"\d+(\.\d+)?$", str(value))
    if number:
        return float(number[0])
    return 0.0 if "/" in str(value) else str(value)


def draw(found: dict[str, dict[str, Values]], label: str, metric: str, picture: Path) -> None:
    """Writes the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(found), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    variants = list(dict.fromkeys(variant for of in found.values() for variant in of))
    for axes, (data, of) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for variant, values in of.items():
            color = f"C{variants.index(variant)}"
            places = sorted(place for place in values if isinstance(place, float))
            bars = [stdev(values[place]) if len(values[place]) > 1 else 0.0 for place in places]
            heights = [mean(values[place]) for place in places]
            axes.errorbar(places, heights, bars, marker="o", capsize=3, color=color, label=variant or None)
            for word in (place for place in values if isinstance(place, str)):
                name = f"{variant} {word}".strip()
                axes.axhline(mean(values[word]), linestyle="--", color=color, label=name)
        axes.set(title=data, xlabel=label, ylabel=metric)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    command_line(curves)
