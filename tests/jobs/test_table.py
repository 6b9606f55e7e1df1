"""The Markdown table: validation only, unless the test is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from jobs.table import table
from tests.support.study import call


def test_a_table_to_choose_by(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(table, study, "--baseline", "full") == 0
    baby = capsys.readouterr().out.split("\n\n")[1].splitlines()
    p = ttest_rel([0.096, 0.098, 0.099], [0.100, 0.104, 0.102]).pvalue
    assert baby == [
        "| configuration | seeds | validation | difference | p |",
        "|---|---|---|---|---|",
        "| full | 3 | 0.1020 ± 0.0020 |  |  |",
        f"| plain | 3 | 0.0977 ± 0.0015 | -4.2 % | {p:.3f} |",
        "| t=3.0 | 1 | 0.0950 | -5.0 % |  |",
        "| t=1.0 | 1 | 0.0900 | -10.0 % |  |",
    ]
    assert call(table, study, "--metric", "ndcg@20", "--baseline", "full", "--test") == 0
    assert "| full | 3 | 0.0510 ± 0.0010 |  |  | 0.0510 ± 0.0010 |" in capsys.readouterr().out
    assert call(table, study, "--baseline", "fall") == 2
    assert capsys.readouterr().err.startswith("error[report.baseline]: ")
