"""Prints finished runs as a Markdown table to choose by: on validation only, unless the test is asked for::

    python -m jobs.table runs/better runs/better_together --baseline default
    python -m jobs.table runs/better --baseline default --metric ndcg@20 --test

Runs that differ in their seed only are one line: mean and standard deviation over seeds, the difference from the
baseline over the seeds that both have, in per cent, and the p of a two-sided paired t-test, per comparison and
uncorrected. Best first.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from jobs.collect import by_data, collect_finished, refuse_unevaluated
from jobs.command import command_line
from jobs.compare import Group, choose_baseline, group_runs, paired_test


def table(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders, or folders that hold some")],
    baseline: Annotated[
        str | None, typer.Option(help="configuration to compare with; by default the one closest to all others")
    ] = None,
    metric: Annotated[str, typer.Option(help="the metric to compare by")] = "recall@20",
    test: Annotated[bool, typer.Option("--test", help="show the test as well; look at it once, at the end")] = False,
) -> None:
    """Print a Markdown table of finished runs."""
    found, _ = collect_finished(runs)
    refuse_unevaluated(run for run in found if not run.content["validation"])
    studies = {data: group_runs(members) for data, members in by_data(found).items()}
    labels = {data: {group.label for group in groups} for data, groups in studies.items()}
    for data, groups in studies.items():
        # A data set may lack the baseline that another one has; a name that none has is refused.
        missing_here_only = baseline not in labels[data] and any(baseline in names for names in labels.values())
        chosen = choose_baseline(groups, metric, None if missing_here_only else baseline)
        print(f"{data}, {metric}; against {chosen.label}\n")
        print("\n".join(lines(groups, chosen, metric, show_test=test)), end="\n\n")


def lines(groups: list[Group], baseline: Group, metric: str, show_test: bool) -> list[str]:
    """Returns the lines of the table, ordered by validation."""
    heads = ["configuration", "seeds", "validation", "difference", "p"] + (["test"] if show_test else [])
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    validation = {group.label: group.by_seed(metric, "validation") for group in groups}
    for group in sorted(groups, key=lambda group: -mean(validation[group.label].values() or [0])):
        values = validation[group.label]
        change = p = ""
        if group is not baseline:
            found = paired_test(values, validation[baseline.label])
            change = "" if found.relative is None else f"{100 * found.relative:+.1f} %"
            p = "" if found.p is None else f"{found.p:.3f}"
        cells = [group.label, str(len(values)), _format(values), change, p]
        if show_test:
            cells.append(_format(group.by_seed(metric, "test")))
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _format(by_seed: dict[int, float]) -> str:
    values = list(by_seed.values())
    if not values:
        return ""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


if __name__ == "__main__":
    command_line(table)
