"""The HTML page of a report: one section per data set."""

from __future__ import annotations

import math
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.collect import Run, refuse_unevaluated
from jobs.compare import Comparison, Group, choose_baseline, compare, group_runs, sensitivities
from jobs.figures import sensitivity_curve, training_curves
from partition.errors import InputError

LEADERBOARD_METRICS = 12  # at most


def render(title: str, sections: list[dict[str, Any]], count: int, unfinished: list[Path]) -> str:
    """Returns the page, with all scripts inside."""
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


def section(data: str, runs: list[Run], metric: str | None, baseline: str | None) -> dict[str, Any]:
    """Returns what the template needs for one data set.

    Raises:
        InputError: a run was not evaluated, the runs lack the metric, or no configuration is named `baseline`.
    """
    metric = metric or runs[0].settings["evaluate.monitor"]
    refuse_unevaluated(run for run in runs if not run.metrics)
    if metric not in runs[0].metrics:
        raise InputError(
            f"--metric {metric}: not computed in {runs[0].folder}; there are {', '.join(runs[0].metrics)}",
            "report.metric",
        )
    groups = group_runs(runs)
    best_first = sorted(groups, key=lambda group: -group.mean(metric) if group.by_seed(metric) else math.inf)
    base = choose_baseline(groups, metric, baseline)
    names = [name for name in runs[0].metrics if name.startswith(("recall", "ndcg"))][:LEADERBOARD_METRICS]
    return {
        "data": data,
        "split": runs[0].split,
        "metric": metric,
        "metrics": names,
        "baseline": base.label,
        "leaderboard": [_leaderboard_row(group, names, group is base) for group in best_first],
        "comparisons": [_comparison_row(row, metric) for row in compare(groups, base, metric)],
        "sensitivities": [
            sensitivity_curve(setting, points, metric) for setting, points in sensitivities(groups, base).items()
        ],
        "curves": training_curves(best_first, metric),
        "runs": [_run_row(run, metric) for group in best_first for run in group.runs],
    }


def _leaderboard_row(group: Group, names: list[str], is_baseline: bool) -> dict[str, Any]:
    cells = []
    for name in names:
        std = group.std(name)
        cells.append(_number(group.mean(name)) + ("" if std is None else f" ± {_number(std)}"))
    return {"label": group.label, "seeds": len(group.runs), "cells": cells, "baseline": is_baseline}


def _comparison_row(row: Comparison, metric: str) -> dict[str, Any]:
    test = row.test
    sign = ""
    if test.difference:
        sign = "worse" if test.difference < 0 else "better"
    return {
        "label": row.group.label,
        "changes": [f"{key}: {old} → {new}" for key, (old, new) in row.changes.items()],
        "value": _number(row.group.mean(metric)),
        "difference": "no common seed" if test.difference is None else f"{test.difference:+.4f}",
        "relative": "" if test.relative is None else f"{test.relative:+.1%}",
        "sign": sign,
        "seeds": test.seeds,
        "p": _p_value(test.p),
    }


def _p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _run_row(run: Run, metric: str) -> dict[str, Any]:
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
