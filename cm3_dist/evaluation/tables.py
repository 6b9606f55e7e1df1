"""Prints the figures of an evaluation as tables."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from cm3_dist.evaluation.beyond_accuracy import NAMES
from cm3_dist.evaluation.neighbourhood_overlap import NEAREST
from cm3_dist.evaluation.slices import Group

TITLES = {"map": "MAP", "ndcg": "NDCG", "popularity_lift": "popularity lift", "gini": "Gini"}


def print_evaluation(content: dict[str, Any]) -> None:
    """Prints what `evaluate_model` returned."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    rankings = content["rankings"]
    which = ", items without training only" if content["cold"] else ", full ranking"
    console.print(
        _table(
            f"{content['data']}, {content['split']}{which}: {content['users']:,} users, "
            f"{content['candidates']:,} items; {content['checkpoint']}",
            list(rankings),
            [
                (_title(name), [entry[part][name] for entry in rankings.values()])
                for part, name in _rows(rankings["CM3"])
            ],
        )
    )
    if "by_popularity" in rankings["CM3"]:
        console.print(_by_popularity(rankings))
    if "by_activity" in rankings["CM3"]:
        console.print(_by_activity(rankings))
    if "neighbours" in content:
        console.print(_neighbours(content["neighbours"]))
    if "against" in content:
        against = content["against"]
        rows = [
            (_title(name), [found["difference"], found["low"], found["high"], found["p"]])
            for name, found in against["difference"].items()
        ]
        title = f"CM3 minus {against['run']} ({against['checkpoint']}), paired bootstrap, {against['resamples']} draws"
        console.print(_table(title, ["difference", "2.5 %", "97.5 %", "p"], rows))


def _rows(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Recall and NDCG at each K, everything else at one K."""
    found = [("accuracy", name) for name in entry["accuracy"] if name.startswith(("recall", "ndcg"))]
    return [*found, *(("exposure", f"{name}@{_k(entry)}") for name in NAMES)]


def _k(entry: dict[str, Any]) -> int:
    """The largest K up to 20, else the smallest."""
    ks = sorted(int(name.split("@")[1]) for name in entry["accuracy"] if name.startswith("recall"))
    return max([k for k in ks if k <= 20] or ks[:1])


def _by_popularity(rankings: dict[str, Any]) -> Table:
    metric = f"recall@{_k(rankings['CM3'])}"
    table = Table(
        title=f"by training interactions of the items: {_title(metric)} | share of all list entries",
        title_justify="left",
    )
    for label in ("interactions", "items", "share of items", "held out", *rankings):
        table.add_column(label, justify="right")
    for number, group in enumerate(rankings["CM3"]["by_popularity"]):
        cells = [Group(*group["training_interactions"]).label, f"{group['items']:,}"]
        cells += [f"{group['share_of_items']:.3f}", f"{group['share_of_held_out']:.3f}"]
        for entry in rankings.values():
            own = entry["by_popularity"][number]
            recall = "-" if own[metric] is None else f"{own[metric]:.4f}"
            cells.append(f"{recall} | {own['share_of_lists']:.3f}")
        table.add_row(*cells)
    return table


def _neighbours(kept: dict[str, dict[str, float]]) -> Table:
    title = (
        f"neighbours kept: of an item's {NEAREST} nearest by raw features, the share among its nearest by these rows"
    )
    return _table(title, list(next(iter(kept.values()))), [(name, list(row.values())) for name, row in kept.items()])


def _by_activity(rankings: dict[str, Any]) -> Table:
    metric = f"recall@{_k(rankings['CM3'])}"
    table = Table(title=f"by training interactions of the users: {_title(metric)}", title_justify="left")
    for label in ("interactions", "users", *rankings):
        table.add_column(label, justify="right")
    for number, group in enumerate(rankings["CM3"]["by_activity"]):
        own = [f"{entry['by_activity'][number][metric]:.4f}" for entry in rankings.values()]
        table.add_row(Group(*group["training_interactions"]).label, f"{group['users']:,}", *own)
    return table


def _table(title: str, columns: list[str], rows: list[tuple[str, list[float]]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for label in columns:
        table.add_column(label, justify="right", style="bold" if label == "CM3" else None)
    for name, values in rows:
        table.add_row(name, *(f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}" for value in values))
    return table


def _title(name: str) -> str:
    metric, _, k = name.partition("@")
    return f"{TITLES.get(metric, metric.capitalize())}@{k}"
