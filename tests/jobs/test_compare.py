"""Seeds are one configuration; differences are taken seed by seed, in one place for the page and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from jobs.collect import by_data, collect
from jobs.compare import choose_baseline, compare, group_runs, paired_test, sensitivities
from partition.errors import InputError
from tests.support.study import METRIC


def test_groups_and_their_differences_from_the_baseline(study: Path) -> None:
    groups = {group.label: group for group in group_runs(by_data(collect([study])[0])["baby"])}
    assert set(groups) == {"full", "plain", "t=1.0", "t=3.0"}
    full, plain = groups["full"], groups["plain"]
    assert full.mean(METRIC) == pytest.approx(0.102)
    assert full.std(METRIC) == pytest.approx(0.002)
    assert groups["t=1.0"].std(METRIC) is None
    everything = list(groups.values())
    assert choose_baseline(everything, METRIC, None) is full  # one setting away from every other
    assert choose_baseline(everything, METRIC, "plain") is plain
    with pytest.raises(InputError) as refused:
        choose_baseline(everything, METRIC, "fall")
    assert refused.value.code == "report.baseline"
    rows = {row.group.label: row for row in compare(everything, full, METRIC)}
    assert list(rows) == ["t=1.0", "t=3.0", "plain"]  # from the largest loss
    assert rows["plain"].changes == {"loss.item_uniformity": ("calibrated", "plain")}
    assert rows["plain"].test.seeds == 3
    assert rows["t=1.0"].test.difference == pytest.approx(-0.01)  # against the same seed, not against the mean
    ((setting, points),) = sensitivities(everything, full).items()
    assert setting == "loss.t"
    assert [(value, group.label) for value, group in points] == [(1.0, "t=1.0"), (2.0, "full"), (3.0, "t=3.0")]


def test_the_paired_test_uses_common_seeds_only() -> None:
    found = paired_test({1: 0.096, 2: 0.098, 3: 0.099, 4: 0.5}, {3: 0.102, 2: 0.104, 1: 0.1, 9: 0.7})
    assert found.seeds == 3
    assert found.difference == pytest.approx((-0.004 - 0.006 - 0.003) / 3)
    assert found.relative == pytest.approx(-0.013 / 0.306)
    assert found.p == pytest.approx(ttest_rel([0.096, 0.098, 0.099], [0.1, 0.104, 0.102]).pvalue)
    assert paired_test({1: 0.25}, {1: 0.5}).p is None  # one seed
    assert paired_test({1: 0.25, 2: 0.5}, {1: 0.5, 2: 0.75}).p is None  # no spread
    assert paired_test({1: 0.25}, {1: 0.0}).relative is None
    assert paired_test({1: 0.25}, {2: 0.5}).difference is None
