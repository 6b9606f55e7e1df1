"""The plots of a report, as HTML that needs plotly.js in the page."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from jobs.compare import Group

LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "height": 380,
    "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
    "font": {"family": "system-ui, sans-serif", "size": 13},
}
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")


def training_curves(groups: list[Group], metric: str) -> list[str]:
    """Loss over steps and validation over epochs: a line a run, a colour a configuration."""
    return [
        _lines(groups, "Loss", "step", "loss", lambda run: run.loss, "lines"),
        _lines(
            groups,
            f"Validation {metric}",
            "epoch",
            metric,
            lambda run: [(line["epoch"], line[metric]) for line in run.evaluations if metric in line],
            "lines+markers",
        ),
    ]


def sensitivity_curve(setting: str, points: list[tuple[float, Group]], metric: str) -> str:
    """Mean and standard deviation over seeds, by the value of one setting."""
    import plotly.graph_objects as go

    errors = [group.std(metric) or 0.0 for _, group in points]
    line = go.Scatter(
        x=[value for value, _ in points],
        y=[group.mean(metric) for _, group in points],
        error_y={"type": "data", "array": errors},
        mode="lines+markers",
        text=[group.label for _, group in points],
        showlegend=False,
    )
    return _html(go.Figure(line), setting, setting.split(" = ")[0], metric)


def _lines(groups: list[Group], title: str, x: str, y: str, curve: Any, mode: str) -> str:
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
    figure.update_layout(**LAYOUT, title=title)
    few = x == "epoch" and max((value for trace in figure.data for value in trace.x), default=0) <= 10
    figure.update_xaxes(title=x, dtick=1 if few else None)
    figure.update_yaxes(title=y)
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
    )
    return html
