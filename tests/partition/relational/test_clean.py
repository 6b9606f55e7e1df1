from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.transform.dataset import TEST, TRAIN
from tests.support.raw_tables import Refused, items_table, logged, mmrec, pairs, random_log, read, table, write


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_log(tmp_path_factory.mktemp("random") / "log")


def rows_of(source: Path) -> list[dict[str, Any]]:
    return pq.read_table(source / "log.parquet").to_pylist()


def test_duplicates_keep_the_lowest_label_and_the_highest_weight(source: Path, tmp_path: Path) -> None:
    dataset = read(tmp_path, source, split="column", weight_column="strength")
    expected: dict[tuple[Any, Any], tuple[int, float]] = {}
    for row in rows_of(source):
        key, found = (row["user"], row["item"]), (row["split"], row["strength"])
        known = expected.get(key, found)
        expected[key] = min(known[0], found[0]), max(known[1], found[1])
    trained = {user for (user, _), (label, _) in expected.items() if label == TRAIN}
    assert dataset.weight is not None
    assert dataset.weight.dtype == np.float32
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    columns = zip(dataset.user, dataset.item, dataset.split, dataset.weight, strict=True)
    merged = {(users[user], items[item]): (label, weight) for user, item, label, weight in columns}
    assert merged == {key: value for key, value in expected.items() if key[0] in trained}
    assert dataset.counts["duplicates_merged"] == len(rows_of(source)) - len(expected)
    assert users == sorted({row["user"] for row in rows_of(source)})
    order = np.lexsort((dataset.item, dataset.user))
    np.testing.assert_array_equal(order, np.arange(len(order)))


def test_merged_pairs_are_counted_and_do_not_leak(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", pa.concat_tables([table(), table(split=[2, 0, 2, 2, 2, 2])]))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.counts["duplicates_merged"] == 6
    assert ("u1", "a", TRAIN) in pairs(dataset)
    assert ("u2", "a", TEST) in pairs(dataset)


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_k_core_equals_removing_one_node_at_a_time(tmp_path: Path, k: int) -> None:
    source = random_log(tmp_path / "log", k)
    edges = {(row["user"], row["item"]) for row in rows_of(source)}
    while True:
        degree = Counter((side, edge[side]) for edge in edges for side in (0, 1))
        weak = next((node for node, count in degree.items() if count < k), None)
        if weak is None:
            break
        edges = {edge for edge in edges if edge[weak[0]] != weak[1]}
    dataset = read(tmp_path, source, split="none", kcore=k)
    assert {(user, item) for user, item, _ in pairs(dataset)} == edges
    assert 0 < len(edges) <= 3000
    assert dataset.user_ids.to_pylist() == sorted({user for user, _ in edges})
    assert dataset.item_ids.to_pylist() == sorted({item for _, item in edges})
    assert dataset.user.dtype == dataset.item.dtype == np.int32


def test_the_core_takes_users_items_and_feature_rows_with_it(tmp_path: Path) -> None:
    # Items 1 and 2 and users 5, 6, 9 form a 2-core; item 0 leans on user 3, item 3 has nobody.
    rows = [(5, 1, 0), (5, 2, 0), (6, 1, 0), (6, 2, 0), (9, 1, 0), (9, 2, 0), (3, 0, 0), (3, 1, 0)]
    dataset = read(tmp_path, mmrec(tmp_path / "tiny", rows), kcore=2)
    assert pairs(dataset) == sorted(rows[:6])
    assert dataset.item_ids.to_pylist() == [1, 2]
    assert dataset.features["image"].values.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert dataset.counts | {} == {
        "duplicates_merged": 0,
        "kcore_dropped": 2,
        "kcore_users_dropped": 1,
        "kcore_items_dropped": 2,
        "users_without_training": 0,
        "heldout_dropped": 0,
    }


def test_users_without_training_are_kept_out_of_evaluation_and_counted(tmp_path: Path) -> None:
    rows = [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 2), (2, 2, 2)]
    dataset = read(tmp_path, mmrec(tmp_path / "tiny", rows))
    assert pairs(dataset) == [(0, 0, 0), (0, 1, 2)]
    assert dataset.user_ids.to_pylist() == [0, 1, 2]
    assert dataset.counts["users_without_training"] == 2
    assert dataset.counts["heldout_dropped"] == 3


def test_an_empty_core_is_refused(tmp_path: Path) -> None:
    Refused(logged(), "option.kcore", "--kcore 9: ", {"kcore": 9}).check(tmp_path)
