"""Compares runs: groups those that differ in their seed only, and compares each group with a baseline."""

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
NOT_COMPARED = ("run.", "machine.", "train.seed", "evaluate.")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    runs: list[Run]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all runs of the group share."""
        return _compared(self.runs[0])

    def by_seed(self, metric: str, split: str | None = None) -> dict[int, float]:
        """The metric per seed, on `split` or on the split that the runs are compared on; the later of equal seeds."""
        found = {run.seed: run.content[split or run.split] for run in self.runs}
        return {seed: metrics[metric] for seed, metrics in found.items() if metric in metrics}

    def mean(self, metric: str) -> float:
        """Mean over seeds; NaN if no run has the metric."""
        values = self.by_seed(metric).values()
        return mean(values) if values else math.nan

    def std(self, metric: str) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        values = self.by_seed(metric).values()
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class PairedTest:
    """A metric of two groups, over the seeds that both have."""

    seeds: int
    difference: float | None  # mean over the seeds; None if there are none
    relative: float | None  # to the baseline's mean over the same seeds; None if that is 0
    p: float | None  # two-sided paired t-test, not corrected for the number of comparisons; None without any spread


@dataclass(frozen=True)
class Comparison:
    """A group against the baseline."""

    group: Group
    changes: dict[str, tuple[Any, Any]]  # setting -> the baseline's value, this group's
    test: PairedTest


def group_runs(runs: list[Run]) -> list[Group]:
    """Groups runs; labels are the run folders' names without the seed."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(_compared(run), sort_keys=True), []).append(run)
    labels = [_label(members[0], long=False) for members in found.values()]
    return [
        Group(label if labels.count(label) == 1 else _label(members[0], long=True), members)
        for label, members in zip(labels, found.values(), strict=True)
    ]


def _compared(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if not key.startswith(NOT_COMPARED)}


def _label(run: Run, long: bool) -> str:
    words = [word for word in run.folder.name.split(",") if not word.startswith("seed=")]
    name = ",".join(words) or run.folder.parent.name
    return f"{run.folder.parent.name}/{name}" if long else name


def changes(group: Group, baseline: Group) -> dict[str, tuple[Any, Any]]:
    """Returns the settings in which two groups differ: the baseline's value, the group's."""
    ours, theirs = group.settings, baseline.settings
    keys = dict.fromkeys([*theirs, *ours])
    return {key: (theirs.get(key), ours.get(key)) for key in keys if theirs.get(key) != ours.get(key)}


def choose_baseline(groups: list[Group], metric: str, label: str | None) -> Group:
    """Returns the group named `label`, or by default the one that all others differ from in the fewest settings.

    Of several such groups the one with the best metric.

    Raises:
        InputError: no group has that name.
    """
    if label is not None:
        for group in groups:
            if group.label == label:
                return group
        raise InputError(
            f"--baseline {label}: no such configuration; there are {', '.join(group.label for group in groups)}",
            "report.baseline",
        )

    def distance(group: Group) -> tuple[int, float]:
        score = group.mean(metric)
        return sum(len(changes(other, group)) for other in groups), math.inf if math.isnan(score) else -score

    return min(groups, key=distance)


def compare(groups: list[Group], baseline: Group, metric: str) -> list[Comparison]:
    """Compares every other group with the baseline, from the largest loss to the largest gain."""
    found = [
        Comparison(group, changes(group, baseline), paired_test(group.by_seed(metric), baseline.by_seed(metric)))
        for group in groups
        if group is not baseline
    ]
    return sorted(found, key=lambda row: math.inf if row.test.difference is None else row.test.difference)


def paired_test(values: dict[int, float], baseline: dict[int, float]) -> PairedTest:
    """Compares two groups' metrics, given by seed."""
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return PairedTest(0, None, None, None)
    ours, theirs = [values[seed] for seed in seeds], [baseline[seed] for seed in seeds]
    differences = [our - their for our, their in zip(ours, theirs, strict=True)]
    difference, reference = mean(differences), mean(theirs)
    p = float(ttest_rel(ours, theirs).pvalue) if max(differences) != min(differences) else None
    return PairedTest(len(seeds), difference, difference / reference if reference else None, p)


def sensitivities(groups: list[Group], baseline: Group) -> dict[str, list[tuple[float, Group]]]:
    """Returns, per numeric setting with three values or more, (value, group) in ascending order.

    Only groups that differ from the baseline in nothing else count.
    """
    found: dict[str, list[tuple[float, Group]]] = {}
    for group in groups:
        changed = changes(group, baseline)
        if len({str(pair) for pair in changed.values()}) == 1 and all(map(_is_number, changed.values())):
            # Settings that a sweep changes together (the weight decay of both optimizers) count as one.
            found.setdefault(" = ".join(changed), []).append((float(next(iter(changed.values()))[1]), group))
    for name, points in found.items():
        points.append((float(baseline.settings[name.split(" = ")[0]]), baseline))
        points.sort(key=lambda point: point[0])
    return {name: points for name, points in found.items() if len(points) >= 3}


def _is_number(pair: tuple[Any, Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in pair)
