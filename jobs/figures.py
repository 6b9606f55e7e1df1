"""The plots of a report, as HTML that needs plotly.js in the page."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

from jobs.collect import Run
from jobs.compare import Group
from jobs.style import COLOURS, PLOTLY


def training_curves(groups: list[Group], metric: str) -> list[str]:
    """Loss over steps and validation over epochs: a line per run, a colour per configuration."""

    def validation(run: Run) -> list[tuple[int, float]]:
        return [(line["epoch"], line[metric]) for line in run.evaluations if metric in line]

    return [
        _lines(groups, title="Loss", x="step", y="loss", curve=lambda run: run.loss, mode="lines"),
        _lines(groups, title=f"Validation {metric}", x="epoch", y=metric, curve=validation, mode="lines+markers"),
    ]


def sensitivity_curve(setting: str, points: list[tuple[float, Group]], metric: str) -> str:
    """Mean and standard deviation over seeds, by the value of one setting."""
    import plotly.graph_objects as go

    line = go.Scatter(
        x=[value for value, _ in points],
        y=[group.mean(metric) for _, group in points],
        error_y={"type": "data", "array": [group.std(metric) or 0.0 for _, group in points]},
        mode="lines+markers",
        text=[group.label for _, group in points],
        showlegend=False,
    )
    return _html(go.Figure(line), setting, setting.split(" = ")[0], metric)


def _lines(
    groups: list[Group], title: str, x: str, y: str, curve: Callable[[Run], list[tuple[int, float]]], mode: str
) -> str:
    import plotly.graph_objects as go

    figure = go.Figure()
    for group, colour in zip(groups, cycle(COLOURS)):
        for number, run in enumerate(group.runs):
            points = curve(run)
            figure.add_scatter(
                x=[point[0] for point in points],
                y=[point[1] for point in points],
                mode=mode,
                name=group.label,
                legendgroup=group.label,
                showlegend=number == 0,
                line={"color": colour, "width": 1.5},
                hovertemplate=f"{group.label}, seed {run.seed}<br>{x} %{{x}}: %{{y:.4f}}<extra></extra>",
            )
    return _html(figure, title, x, y)


def _html(figure: Any, title: str, x: str, y: str) -> str:
    figure.update_layout(**PLOTLY, title=title)
    few_epochs = x == "epoch" and max((value for trace in figure.data for value in trace.x), default=0) <= 10
    figure.update_xaxes(title=x, dtick=1 if few_epochs else None)
    figure.update_yaxes(title=y)
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return html
