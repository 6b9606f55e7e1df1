from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.support.raw_tables import EXPECTED, Refused, items_table, logged, pairs, read, table, two_logs, write


@pytest.mark.parametrize("labels", [["train", "VALID", "Training", "test", "0", "train"], list("010200")])
def test_split_labels_by_name(tmp_path: Path, labels: list[str]) -> None:
    log = write(tmp_path / "log.csv", table(split=labels))
    assert pairs(read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))) == EXPECTED


@pytest.mark.parametrize(
    "times",
    [
        [30, 10, 20, 60, 40, 50],
        [3.5, 1.0, 2.25, 6.0, 4.0, 5.0],
        ["2026-01-03", "2026-01-01", "2026-01-02", "2026-01-06", "2026-01-04", "2026-01-05"],
        [f"2026-01-01 00:00:0{s}" for s in (3, 1, 2, 6, 4, 5)],
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_leave_last_out_reads_any_kind_of_time(tmp_path: Path, times: list[Any], suffix: str) -> None:
    column = pa.array(times)
    if pa.types.is_string(column.type):
        column = column.cast(pa.timestamp("s"))
    log = write(tmp_path / f"log.{suffix}", table(user=["u"] * 3 + ["v"] * 3, item=list("abcabc"), ts=column))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()), split="leave-last-out")
    assert pairs(dataset) == [("u", "a", 2), ("u", "b", 0), ("u", "c", 1), ("v", "a", 2), ("v", "b", 0), ("v", "c", 1)]


LAST = {"split": "leave-last-out"}
NAMED = ["train", "train", "holdout", "test", "test", "test"]
DATED = {"user": ["u"], "item": ["a"], "ts": pa.array([0], pa.timestamp("s"))}
REFUSED = {
    "unknown split": Refused(
        logged(split=[0, 1, 0, 7, 0, 0]),
        "split.label",
        "log.csv: column 'split': 1 of 6 split labels are unknown; first: row 3 (line 5), '7'",
    ),
    "unknown split by name": Refused(
        logged(split=NAMED, suffix="arrow"),
        "split.label",
        "log.arrow: column 'split': 1 of 6 split labels are unknown; first: row 2, 'holdout'",
    ),
    "null split": Refused(
        logged(split=[0, None, 0, 1, 0, 0], suffix="parquet"), "split.label", "log.parquet: column 'split': 1 of 6 "
    ),
    "null time": Refused(
        logged(time=[1, 2, 3, None, 5, 6], suffix="parquet"),
        "time.missing",
        "log.parquet: column 'time': 1 of 6 ",
        LAST,
    ),
    "NaN time": Refused(
        logged(time=[1, 2, 3, 4, 5, np.nan], suffix="parquet"),
        "time.missing",
        "log.parquet: column 'time': 1 of 6 ",
        LAST,
    ),
    "time as text": Refused(logged(time=["soon"] * 6), "time.type", "log.csv: column 'time': ", LAST),
    "dates and numbers": Refused(
        two_logs(DATED, {"user": ["u"], "item": ["a"], "ts": [0]}), "time.mixed", "1.parquet: ", LAST
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    REFUSED[case].check(tmp_path)
