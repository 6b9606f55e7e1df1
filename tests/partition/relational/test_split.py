from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.stages import Stages
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Dataset
from tests.support.raw_tables import Refused, items_table, logged, pairs, random_log, read, table, write


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_log(tmp_path_factory.mktemp("random") / "log")


def labels_of_users(dataset: Dataset) -> list[np.ndarray]:
    assert (np.diff(dataset.user) >= 0).all()
    return np.split(np.asarray(dataset.split), np.flatnonzero(np.diff(dataset.user)) + 1)


def times(source: Path) -> dict[tuple[Any, Any], int]:
    """The earliest time of every pair."""
    found: dict[tuple[Any, Any], int] = {}
    rows = pq.read_table(source / "log.parquet", columns=["user", "item", "time"]).to_pylist()
    for row in rows:
        key = row["user"], row["item"]
        found[key] = min(row["time"], found.get(key, row["time"]))
    return found


@pytest.mark.parametrize("method", ["random", "leave-last-out", "cold-items", "time"])
def test_a_split_gives_each_interaction_one_label_and_repeats_with_its_seed(
    source: Path, tmp_path: Path, method: str
) -> None:
    dataset = read(tmp_path, source, split=method, seed=3)
    assert dataset.split.dtype == np.int8
    assert set(dataset.split.tolist()) == {TRAIN, VALIDATION, TEST}
    assert pairs(read(tmp_path, source, split=method, seed=3)) == pairs(dataset)
    assert (pairs(read(tmp_path, source, split=method, seed=4)) == pairs(dataset)) == (method == "time")
    assert dataset.split_method == method.replace("-", "_")


def test_random_split_of_each_user(source: Path, tmp_path: Path) -> None:
    found = labels_of_users(read(tmp_path, source, split="random"))
    for own in found:
        tenths = max(len(own) // 10, 1), max(len(own) // 5 - len(own) // 10, 1)
        held_out = {1: (0, 0), 2: (0, 1)}.get(len(own), tenths)
        assert ((own == VALIDATION).sum(), (own == TEST).sum()) == held_out
        assert (own == TRAIN).any()
    assert {len(own) for own in found} >= {1, 2, 3}
    assert 0 < np.mean([own[0] != TRAIN for own in found]) < 0.6  # not always the same places


def test_leave_last_out_respects_time(source: Path, tmp_path: Path) -> None:
    time, own = times(source), defaultdict(list)
    for user, item, label in pairs(read(tmp_path, source, split="leave-last-out")):
        own[user].append((label, time[user, item]))
    for rows in own.values():
        held_out = [sum(label == code for label, _ in rows) for code in (VALIDATION, TEST)]
        assert held_out == [int(len(rows) >= 3), int(len(rows) >= 2)]
        ordered = [when for _, when in sorted(rows)]  # training, validation, test
        assert ordered == sorted(ordered)


def test_interactions_of_one_time_are_drawn_and_counted(tmp_path: Path) -> None:
    rows = [(user, item) for user in range(400) for item in range(10)]
    user, item = np.array(rows).T
    stages, inputs = Stages(quiet=True), [tmp_path / "log.parquet", tmp_path / "items.parquet"]
    write(inputs[0], pa.table({"user": user, "item": item, "time": np.where(item < 2, item, 7)}))
    write(inputs[1], items_table(list(range(10))))
    dataset = read(tmp_path, *inputs, split="leave-last-out", stages=stages)
    assert stages.statistics["tied_time_share"] == 0.8
    last = dataset.item[dataset.split == TEST]
    assert len(last) == 400
    assert last.min() == 2
    assert np.bincount(last, minlength=10)[2:].min() > 20  # 50 expected of each
    write(inputs[0], pa.table({"user": user, "item": item, "time": item}))
    dataset = read(tmp_path, *inputs, split="leave-last-out", stages=stages)
    assert stages.statistics["tied_time_share"] == 0
    assert (dataset.item[dataset.split == TEST] == 9).all()


def test_a_split_by_time_is_the_same_for_all_users(source: Path, tmp_path: Path) -> None:
    time, own = times(source), defaultdict(list)
    dataset = read(tmp_path, source, split="time")
    for user, item, label in pairs(dataset):
        own[label].append(time[user, item])
    assert max(own[TRAIN]) < min(own[VALIDATION])
    assert max(own[VALIDATION]) < min(own[TEST])
    ordered = sorted(time.values())
    assert min(own[VALIDATION]) == ordered[len(ordered) * 8 // 10]
    assert min(own[TEST]) == ordered[len(ordered) * 9 // 10]
    assert len(dataset.split) + dataset.counts["heldout_dropped"] == len(time)


@pytest.mark.parametrize(
    ("column", "begin"),
    [
        (pa.array([3, 1, 2, 6, 4, 5]), ("3", "5")),
        (pa.array([3.5, 1, 2, 6, 4, 5]), ("2.5", "5.0")),
        (pa.array([3, 1, 2, 6, 4, 5]).cast(pa.timestamp("s")), ("1970-01-01 00:00:03", "1970-01-01T00:00:05Z")),
    ],
)
def test_a_split_by_time_at_given_times(tmp_path: Path, column: pa.Array, begin: tuple[str, str]) -> None:
    log = write(tmp_path / "log.parquet", table(user=["u"] * 6, item=list("abcdef"), time=column))
    items = write(tmp_path / "items.parquet", items_table("abcdef"))
    dataset = read(tmp_path, log, items, split="time", validate_from=begin[0], test_from=begin[1])
    assert dataset.split.tolist() == [VALIDATION, TRAIN, TRAIN, TEST, VALIDATION, TEST]


def test_cold_items_have_no_training_interaction(source: Path, tmp_path: Path) -> None:
    dataset = read(tmp_path, source, split="cold-items")
    by_label = [set(dataset.item[dataset.split == code].tolist()) for code in (TRAIN, VALIDATION, TEST)]
    assert not by_label[0] & by_label[1]
    assert not by_label[0] & by_label[2]
    assert not by_label[1] & by_label[2]
    assert len(by_label[1]) == len(by_label[2]) == 8


def test_no_split_trains_on_everything(source: Path, tmp_path: Path) -> None:
    dataset = read(tmp_path, source, split="none")
    assert (dataset.split == TRAIN).all()
    assert len(dataset.split) == len(times(source))
    assert dataset.split_method == "none"


def test_nothing_held_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write(tmp_path / "log.parquet", table(user=list("uvwxyz"), split=[0] * 6))
    items = write(tmp_path / "items.parquet", items_table())
    for method in ("random", "column", "none"):
        read(tmp_path, log, items, split=method, stages=Stages())
        said = capsys.readouterr().out
        assert ("warning: nothing in validation and test; --split none " in said) == (method != "none")


EPOCH = pa.array(range(6)).cast(pa.timestamp("s"))
REFUSED = {
    "no training": Refused(logged(split=[1, 2, 1, 2, 1, 2]), "split.empty", "log.csv: column 'split': "),
    "three items": Refused(logged(), "split.items", "--split cold-items: 3 items", {"split": "cold-items"}),
    "no time": Refused(logged(), "column.missing", "log.csv: no time column", {"split": "time"}),
    "no files": Refused(logged(), "option.split", "--split files: ", {"split": "files"}),
    "date among numbers": Refused(
        logged(time=range(6)), "option.time", "--test-from 2026-01-01: ", {"split": "time", "test_from": "2026-01-01"}
    ),
    "number among dates": Refused(
        logged(time=EPOCH, suffix="parquet"),
        "option.time",
        "--test-from soon: ",
        {"split": "time", "test_from": "soon"},
    ),
    "test before validation": Refused(
        logged(time=range(6)),
        "option.time",
        "--test-from 1 ",
        {"split": "time", "test_from": "1", "validate_from": "2"},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    REFUSED[case].check(tmp_path)
