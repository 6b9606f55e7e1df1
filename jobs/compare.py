"""Compares runs: seeds of one configuration together, configurations with a baseline, one setting at a time."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.stats import ttest_rel

from jobs.collect import Run
from partition.errors import InputError

# Settings that do not make another configuration: where and how a run is computed, and its seed.
APART = ("run.", "machine.", "train.seed", "evaluate.")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Run]

    @property
    def settings(self) -> dict[str, Any]:
        """What they have in common."""
        return {key: value for key, value in self.runs[0].settings.items() if not key.startswith(APART)}

    def by_seed(self, metric: str) -> dict[int, float]:
        """The metric of every seed; of two runs of one seed, the later one's."""
        return {run.seed: run.metrics[metric] for run in self.runs if metric in run.metrics}

    def mean(self, metric: str) -> float:
        """Over seeds; NaN when no run has it."""
        values = self.by_seed(metric).values()
        return mean(values) if values else math.nan

    def std(self, metric: str) -> float | None:
        """Standard deviation of a sample of seeds; None for one seed."""
        values = self.by_seed(metric).values()
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """A group against the baseline, over the seeds that both have."""

    group: Group
    changes: dict[str, tuple[Any, Any]]  # setting -> the baseline's value, this group's
    seeds: int
    difference: float | None
    p: float | None  # of a paired t-test, two-sided; None with fewer than two seeds, or without any spread


def group_runs(runs: list[Run]) -> list[Group]:
    """Groups, the labels of which are the run folders' names without the seed."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps({k: v for k, v in run.settings.items() if not k.startswith(APART)}, sort_keys=True)
        found.setdefault(key, []).append(run)
    labels = [_label(members[0], False) for members in found.values()]
    return [
        Group(label if labels.count(label) == 1 else _label(members[0], True), members)
        for label, members in zip(labels, found.values(), strict=True)
    ]


def _label(run: Run, long: bool) -> str:
    words = [word for word in run.folder.name.split(",") if not word.startswith("seed=")]
    name = ",".join(words) or run.folder.parent.name
    return f"{run.folder.parent.name}/{name}" if long else name


def changes(group: Group, baseline: Group) -> dict[str, tuple[Any, Any]]:
    """Settings in which two groups differ: the baseline's value, the group's."""
    ours, theirs = group.settings, baseline.settings
    keys = dict.fromkeys([*theirs, *ours])
    return {key: (theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)}


def choose_baseline(groups: list[Group], metric: str, wanted: str | None) -> Group:
    """The group named `wanted`, or the one that all others differ from in the fewest settings; of several the best.

    Raises:
        InputError: no group is named so.
    """
    if wanted is not None:
        for group in groups:
            if group.label == wanted:
                return group
        raise InputError(f"--baseline {wanted}: no such configuration; there are {', '.join(g.label for g in groups)}")

    def distance(group: Group) -> tuple[int, float]:
        score = group.mean(metric)
        return sum(len(changes(other, group)) for other in groups), math.inf if math.isnan(score) else -score

    return min(groups, key=distance)


def differences(groups: list[Group], baseline: Group, metric: str) -> list[Difference]:
    """Every other group against the baseline, from the greatest loss to the greatest gain."""
    found = [_difference(group, baseline, metric) for group in groups if group is not baseline]
    return sorted(found, key=lambda row: math.inf if row.difference is None else row.difference)


def _difference(group: Group, baseline: Group, metric: str) -> Difference:
    ours, theirs = group.by_seed(metric), baseline.by_seed(metric)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return Difference(group, changes(group, baseline), 0, None, None)
    deltas = [ours[seed] - theirs[seed] for seed in seeds]
    p = None
    if len(seeds) > 1 and max(deltas) != min(deltas):
        p = float(ttest_rel([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]).pvalue)
    return Difference(group, changes(group, baseline), len(seeds), mean(deltas), p)


def sensitivities(groups: list[Group], baseline: Group) -> dict[str, list[tuple[float, Group]]]:
    """Per numeric setting with three values or more: (value, group), all else as in the baseline; ascending."""
    found: dict[str, list[tuple[float, Group]]] = {}
    for group in groups:
        changed = changes(group, baseline)
        if len({str(pair) for pair in changed.values()}) == 1 and all(map(_is_number, changed.values())):
            # Settings that a sweep moves together (the weight decay of both optimizers) are one.
            found.setdefault(" = ".join(changed), []).append((float(next(iter(changed.values()))[1]), group))
    for name, points in found.items():
        points.append((float(baseline.settings[name.split(" = ")[0]]), baseline))
        points.sort(key=lambda point: point[0])
    return {name: points for name, points in found.items() if len(points) >= 3}


def _is_number(pair: tuple[Any, Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in pair)
