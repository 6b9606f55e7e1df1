"""A table of finished runs in Markdown, to choose by: validation only, unless the test is asked for::

    python -m jobs.table runs/better runs/better_together --baseline default
    python -m jobs.table runs/better --baseline default --metric ndcg@20 --test

Runs that differ in their seed only are one line: mean and standard deviation over seeds, the difference from the
baseline over the seeds that both have, in per cent, and the p of a two-sided paired t-test. Best first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer
from scipy.stats import ttest_rel

from jobs.collect import collect_finished
from jobs.command import command_line
from jobs.compare import Group, choose_baseline, group_runs


def table(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders, or folders that hold some")],
    baseline: Annotated[
        str | None, typer.Option(help="configuration to compare with; by default the one closest to all others")
    ] = None,
    metric: Annotated[str, typer.Option(help="which")] = "recall@20",
    test: Annotated[bool, typer.Option("--test", help="show the test too; to be looked at once, at the end")] = False,
) -> None:
    """Print a table of finished runs in Markdown."""
    found, _ = collect_finished(runs)
    studies = {
        data: group_runs([run for run in found if run.data == data])
        for data in dict.fromkeys(run.data for run in found)
    }
    known = {group.label for groups in studies.values() for group in groups}
    for data, groups in studies.items():
        # Another data set may lack the baseline; all of them lack a misspelt one, which is refused.
        there = baseline not in known or baseline in {group.label for group in groups}
        chosen = choose_baseline(groups, metric, baseline if there else None)
        print(f"{data}, {metric}; against {chosen.label}\n")
        print("\n".join(lines(groups, chosen, metric, ["validation", *(["test"] if test else [])])), end="\n\n")


def lines(groups: list[Group], baseline: Group, metric: str, splits: list[str]) -> list[str]:
    """The table's lines; the first split decides the order and is compared."""
    heads = ["configuration", "seeds", splits[0], "difference", "p", *splits[1:]]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    values = {group.label: {split: _by_seed(group, split, metric) for split in splits} for group in groups}
    first = {label: of[splits[0]] for label, of in values.items()}
    for label in sorted(first, key=lambda label: -mean(first[label].values() or [0])):
        own, theirs = first[label], first[baseline.label]
        seeds = sorted(own.keys() & theirs.keys())
        pairs = [own[seed] for seed in seeds], [theirs[seed] for seed in seeds]
        compared = label != baseline.label and bool(seeds)
        change = f"{100 * (mean(pairs[0]) / mean(pairs[1]) - 1):+.1f} %" if compared else ""
        spread = len({a - b for a, b in zip(*pairs, strict=True)}) > 1
        p = f"{ttest_rel(*pairs).pvalue:.3f}" if compared and spread else ""
        cells = [label, str(len(own)), _shown(own), change, p, *(_shown(values[label][split]) for split in splits[1:])]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _by_seed(group: Group, split: str, metric: str) -> dict[int, float]:
    return {run.seed: run.content[split][metric] for run in group.runs if metric in run.content[split]}


def _shown(values: Mapping[int, float]) -> str:
    numbers = list(values.values())
    if not numbers:
        return ""
    text = f"{mean(numbers):.4f}".removeprefix("0")
    return text + (f" ± {stdev(numbers):.4f}".replace(" 0.", " .") if len(numbers) > 1 else "")


if __name__ == "__main__":
    command_line(table)
