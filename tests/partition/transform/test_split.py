from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.options import SplitMethod
from partition.synthetic.options import SyntheticOptions, Width
from partition.synthetic.planted import synthesise
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Interactions
from partition.transform.dedup import merge_duplicates, renumber
from partition.transform.split import split
from tests.support.raw_tables import Refused, logged, pairs, random_interactions, read


def clean_interactions(seed: int = 0) -> Interactions:
    merged, _ = merge_duplicates(random_interactions(seed), 80)
    return Interactions(renumber(merged.user)[1], merged.item, merged.split, merged.time)


@pytest.mark.parametrize("method", [SplitMethod.RANDOM, SplitMethod.LEAVE_LAST_OUT, SplitMethod.COLD_ITEMS])
def test_a_split_gives_each_interaction_one_label_and_repeats_with_its_seed(method: SplitMethod) -> None:
    interactions = clean_interactions()
    labels = split(interactions, method, 3)
    assert labels.shape == (len(interactions),)
    assert labels.dtype == np.int8
    assert set(labels.tolist()) == {TRAIN, VALIDATION, TEST}
    np.testing.assert_array_equal(labels, split(interactions, method, 3))
    assert (labels == split(interactions, method, 4)).all() == (method is SplitMethod.LEAVE_LAST_OUT)


def test_random_split_of_each_user() -> None:
    interactions = clean_interactions()
    labels = split(interactions, SplitMethod.RANDOM, 3)
    for user in range(interactions.user.max() + 1):
        own = labels[interactions.user == user]
        tenths = max(len(own) // 10, 1), max(len(own) // 5 - len(own) // 10, 1)
        held_out = {1: (0, 0), 2: (0, 1)}.get(len(own), tenths)
        assert ((own == VALIDATION).sum(), (own == TEST).sum()) == held_out
        assert (own == TRAIN).any()
    first = np.array([labels[interactions.user == user][0] for user in range(50)])
    assert 0 < (first != TRAIN).mean() < 0.6  # not always the same places


def test_leave_last_out_respects_time() -> None:
    interactions = clean_interactions()
    labels = split(interactions, SplitMethod.LEAVE_LAST_OUT, 0)
    assert interactions.time is not None
    for user in range(interactions.user.max() + 1):
        own = interactions.user == user
        times = [interactions.time[own & (labels == code)] for code in (TRAIN, VALIDATION, TEST)]
        assert [len(part) for part in times[1:]] == [int(own.sum() >= 3), int(own.sum() >= 2)]
        ordered = np.concatenate([np.sort(part) for part in times])
        assert (np.diff(ordered) >= 0).all()


def test_cold_items_have_no_training_interaction() -> None:
    interactions = clean_interactions()
    labels = split(interactions, SplitMethod.COLD_ITEMS, 0)
    by_label = [set(interactions.item[labels == code].tolist()) for code in (TRAIN, VALIDATION, TEST)]
    assert not by_label[0] & by_label[1]
    assert not by_label[0] & by_label[2]
    assert not by_label[1] & by_label[2]
    items = len(set(interactions.item.tolist()))
    assert len(by_label[1]) == len(by_label[2]) == round(items / 10)


def test_the_split_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    modalities = {"image": Width(4)}
    log, _ = synthesise(
        SyntheticOptions(output=folder, users=40, items=30, interactions=300, clusters=5, modalities=modalities, seed=1)
    )
    once = read(tmp_path, folder)
    rows = pq.read_table(log)
    pq.write_table(rows.take(pa.array(np.random.default_rng(0).permutation(rows.num_rows))), log)
    again = read(tmp_path, folder)
    np.testing.assert_array_equal(once.split, again.split)
    assert pairs(once) == pairs(again)


@pytest.mark.parametrize(
    "case",
    [
        Refused(logged(split=[1, 2, 1, 2, 1, 2]), "split.empty", "log.csv: column 'split': "),
        Refused(logged(), "split.items", "--split cold-items: 3 items", {"split": "cold-items"}),
    ],
    ids=lambda case: case.code,
)
def test_refused(tmp_path: Path, case: Refused) -> None:
    case.check(tmp_path)
