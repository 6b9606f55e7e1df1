from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from partition.transform.dataset import TEST, TRAIN, VALIDATION
from partition.transform.dedup import evaluable, k_core, merge_duplicates, renumber
from tests.support.raw_tables import Refused, items_table, logged, mmrec, pairs, random_interactions, read, table, write


def test_duplicates_keep_the_lowest_label_and_the_earliest_time() -> None:
    raw = random_interactions()
    merged, count = merge_duplicates(raw, 80)
    assert raw.split is not None
    assert raw.time is not None
    assert merged.split is not None
    assert merged.time is not None
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for user, item, label, time in zip(raw.user, raw.item, raw.split, raw.time, strict=True):
        best = expected.get((user, item), (label, time))
        expected[user, item] = min(best[0], label), min(best[1], time)
    assert count == len(raw) - len(expected)
    found = {(u, i): (s, t) for u, i, s, t in zip(merged.user, merged.item, merged.split, merged.time, strict=True)}
    assert found == expected
    assert list(found) == sorted(found)
    assert merged.split.dtype == np.int8


def test_merged_pairs_are_counted_and_do_not_leak(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", pa.concat_tables([table(), table(split=[2, 0, 2, 2, 2, 2])]))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.counts["duplicates_merged"] == 6
    assert ("u1", "a", TRAIN) in pairs(dataset)
    assert ("u2", "a", TEST) in pairs(dataset)


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_k_core_equals_removing_one_node_at_a_time(k: int) -> None:
    interactions, _ = merge_duplicates(random_interactions(k), 80)
    edges = set(zip(interactions.user.tolist(), interactions.item.tolist(), strict=True))
    while True:
        degree: dict[tuple[str, int], int] = {}
        for user, item in edges:
            for node in (("u", user), ("i", item)):
                degree[node] = degree.get(node, 0) + 1
        weak = next((node for node, count in degree.items() if count < k), None)
        if weak is None:
            break
        edges = {(u, i) for u, i in edges if weak not in (("u", u), ("i", i))}
    core = k_core(interactions, k)
    assert set(zip(core.user.tolist(), core.item.tolist(), strict=True)) == edges
    assert 0 < len(core) <= len(interactions)


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


def test_renumber() -> None:
    used, number = renumber(np.array([7, 2, 7, 4]))
    assert used.tolist() == [2, 4, 7]
    assert number.tolist() == [2, 0, 2, 1]


def test_users_without_training_are_kept_out_of_evaluation_and_counted(tmp_path: Path) -> None:
    rows = [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 2), (2, 2, 2)]
    dataset = read(tmp_path, mmrec(tmp_path / "tiny", rows))
    assert pairs(dataset) == [(0, 0, 0), (0, 1, 2)]
    assert dataset.user_ids.to_pylist() == [0, 1, 2]
    assert dataset.counts["users_without_training"] == 2
    assert dataset.counts["heldout_dropped"] == 3
    user, label = np.array([0, 0, 1]), np.array([TRAIN, TEST, VALIDATION])
    assert evaluable(user, label).tolist() == [True, True, False]


def test_an_empty_core_is_refused(tmp_path: Path) -> None:
    Refused(logged(), "option.kcore", "--kcore 9: ", {"kcore": 9}).check(tmp_path)
