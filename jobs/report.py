"""Collects finished runs into a Parquet table and one HTML page that needs nothing else::

    python -m jobs.report runs/ablations
    python -m jobs.report runs/ablations runs/more --output study.html --baseline full --metric ndcg@20

The page: leaderboard, differences from a baseline with a paired test, sensitivity, training curves, time, memory, and
every run's command.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3_dist.config.loading import load_settings
from cm3_dist.config.run_files import SETTINGS
from cm3_dist.monitoring.tensorboard import experiment
from jobs.collect import Run, collect_finished, write_table
from jobs.command import command_line
from jobs.compare import Difference, Group, choose_baseline, differences, group_runs, sensitivities
from partition.errors import InputError

SHOWN = 12  # metrics in the leaderboard
COMPARISON = "tensorboard"  # folder for TensorBoard beside a sweep's run folders


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders, or folders that hold some")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="the page; by default report.html in the first folder")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="the table; by default beside the page")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="configuration to compare with; by default the one closest to all others"),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="to compare by; by default that of early stopping")] = None,
    title: Annotated[str | None, typer.Option(help="of the page")] = None,
) -> None:
    """Collect finished runs into a table and a page."""
    found, unfinished = collect_finished(runs)
    output = output or runs[0] / "report.html"
    table = table or output.with_suffix(".parquet")
    sections = [_section(data, found, metric, baseline) for data in dict.fromkeys(run.data for run in found)]
    page = _render(title or f"CM3: {', '.join(path.name for path in runs)}", sections, len(found), unfinished)
    write_table(found, table)
    _write(page, output)
    for root in runs:
        _columns(root)
    print(f"{len(found)} runs, {len(unfinished)} not finished\npage   {output}\ntable  {table}")


def _render(title: str, sections: list[dict[str, Any]], count: int, unfinished: list[Path]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html.jinja").render(
        title=title,
        sections=sections,
        count=count,
        unfinished=[str(path) for path in unfinished],
        plotly=get_plotlyjs(),
        version=version("cm3-dist"),
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


def _section(data: str, runs: list[Run], metric: str | None, baseline: str | None) -> dict[str, Any]:
    """What the page says about one data set."""
    from jobs.figures import sensitivity_curve, training_curves

    runs = [run for run in runs if run.data == data]
    metric = metric or runs[0].settings["evaluate.monitor"]
    if metric not in runs[0].metrics:
        raise InputError(f"--metric {metric}: not computed in {runs[0].folder}; there are {', '.join(runs[0].metrics)}")
    groups = group_runs(runs)
    best_first = sorted(groups, key=lambda group: -group.mean(metric) if metric in group.runs[0].metrics else math.inf)
    base = choose_baseline(groups, metric, baseline)
    names = [name for name in runs[0].metrics if name.startswith(("recall", "ndcg"))][:SHOWN]
    return {
        "data": data,
        "split": runs[0].split,
        "metric": metric,
        "metrics": names,
        "baseline": base.label,
        "leaderboard": [_rank(group, names, group is base) for group in best_first],
        "ablations": [_ablation(row, metric, base.mean(metric)) for row in differences(groups, base, metric)],
        "sensitivities": [
            sensitivity_curve(setting, points, metric) for setting, points in sensitivities(groups, base).items()
        ],
        "curves": training_curves(best_first, metric),
        "runs": [_run(run, metric) for group in best_first for run in group.runs],
    }


def _rank(group: Group, names: list[str], is_baseline: bool) -> dict[str, Any]:
    cells = []
    for name in names:
        std = group.std(name)
        cells.append(_number(group.mean(name)) + ("" if std is None else f" ± {_number(std)}"))
    return {"label": group.label, "seeds": len(group.runs), "cells": cells, "baseline": is_baseline}


def _ablation(row: Difference, metric: str, of: float) -> dict[str, Any]:
    known = row.difference is not None
    return {
        "label": row.group.label,
        "changes": [f"{key}: {old} → {new}" for key, (old, new) in row.changes.items()],
        "value": _number(row.group.mean(metric)),
        "difference": f"{row.difference:+.4f}" if known else "no common seed",
        "relative": f"{row.difference / of:+.1%}" if row.difference is not None and of else "",
        "sign": "" if not row.difference else "worse" if row.difference < 0 else "better",
        "seeds": row.seeds,
        "p": "-" if row.p is None else f"{row.p:.3f}" if row.p >= 0.001 else "< 0.001",
    }


def _run(run: Run, metric: str) -> dict[str, Any]:
    return {
        "name": f"{run.folder.parent.name}/{run.folder.name}",
        "seed": run.seed,
        "value": _number(run.metrics.get(metric, math.nan)),
        "best_epoch": run.content["best_epoch"],
        "epochs": run.content["epochs"],
        "ranks": run.content["world_size"],
        "seconds": f"{run.train_seconds:.1f}",
        "per_epoch": f"{run.train_seconds / max(1, run.content['epochs']):.1f}",
        "memory": "-" if run.memory is None else f"{run.memory:,.0f}",
        "command": run.command,
    }


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _columns(root: Path) -> None:
    """Tells TensorBoard's HParams tab which columns compare the runs of a sweep's folder."""
    settings = [load_settings(path, []) for path in sorted(root.glob(f"*/{SETTINGS}"))]
    if len(settings) < 2:
        return
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    shutil.rmtree(root / COMPARISON, ignore_errors=True)
    writer = EventFileWriter(str(root / COMPARISON))
    writer.add_event(Event(summary=experiment(settings)))
    writer.close()


def _write(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


if __name__ == "__main__":
    command_line(report)
