"""Ranking metrics compared with pytrec_eval on random rankings with lists of different lengths."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3_dist.graph.csr_lists import CsrLists
from cm3_dist.ranking.metrics import NAMES, hits, ranking_metrics
from tests.support import reference as ref

KS = (1, 5, 10, 20)
MEASURES = {"recall": "recall", "ndcg": "ndcg_cut", "precision": "P", "map": "map_cut"}


def _ragged(lists: list[list[int]]) -> CsrLists:
    rows = np.repeat(np.arange(len(lists)), [len(values) for values in lists])
    return CsrLists.from_pairs(rows, np.array([v for values in lists for v in values], np.int64), len(lists))


def _random_case(seed: int, users: int, items: int) -> tuple[np.ndarray, list[list[int]], list[list[int]]]:
    """Integer scores with many ties, the ranking they give with short lists among them, and the relevant items."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (users, items))
    ranked, relevant = [], []
    for user in range(users):
        allowed = rng.permutation(items)[: rng.choice([0, 3, 12, items])]
        ranked.append(ref.ranking(scores[user].tolist(), allowed.tolist(), max(KS)))
        relevant.append(rng.permutation(items)[: rng.integers(1, 30)].tolist())
    return scores, ranked, relevant


def _padded(ranked: list[list[int]], width: int) -> torch.Tensor:
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in ranked], dtype=torch.int64)


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pytrec_eval(seed: int) -> None:
    _, ranked, relevant = _random_case(seed, users=150, items=60)
    ours = ranking_metrics(_padded(ranked, max(KS)), _ragged(relevant), KS)
    assert set(ours) == {f"{name}@{k}" for name in NAMES for k in KS}

    qrels = {f"u{user}": {f"i{item}": 1 for item in items} for user, items in enumerate(relevant)}
    # pytrec_eval orders by score: hand it the position, so that both judge the same list.
    run = {f"u{user}": {f"i{item}": -float(place) for place, item in enumerate(row)} for user, row in enumerate(ranked)}
    cuts = ",".join(map(str, KS))
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {f"{name}.{cuts}" for name in MEASURES.values()}).evaluate(run)
    assert min(len(row) for row in ranked) == 0  # a user with an empty list is among them
    assert max(len(items) for items in relevant) > max(KS)
    for user, items in enumerate(relevant):
        row = theirs.get(f"u{user}")
        for name, measure in MEASURES.items():
            for k in KS:
                expected = row[f"{measure}_{k}"] if row else 0.0  # pytrec_eval leaves out users without a list
                if name == "map":  # trec_eval divides by all relevant items, the field by those that fit into K
                    expected *= len(items) / min(k, len(items))
                assert float(ours[f"{name}@{k}"][user]) == pytest.approx(expected, abs=1e-12), (name, k, user)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equal_to_the_definitions(data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 12))
    item = st.integers(0, items - 1)
    ranked = data.draw(st.lists(st.lists(item, unique=True), min_size=1, max_size=5))
    relevant = [data.draw(st.lists(item, unique=True, min_size=1)) for _ in ranked]
    ours = ranking_metrics(_padded(ranked, items), _ragged(relevant), range(1, items + 1))
    for k in range(1, items + 1):
        for user, (row, wanted) in enumerate(zip(ranked, relevant, strict=True)):
            for name, value in ref.metrics(row, set(wanted), k).items():
                assert float(ours[name][user]) == pytest.approx(value, abs=1e-12), (name, user)


def test_extremes() -> None:
    first, last, nothing = [3, 1, 4], [9, 8, 3], [-1, -1, -1]
    found = ranking_metrics(torch.tensor([first, last, nothing]), _ragged([[1, 3, 4], [3], [0]]), [1, 3])
    assert {name: values.dtype for name, values in found.items()} == dict.fromkeys(found, torch.float64)
    assert all(float(values[0]) == 1 for name, values in found.items() if name != "recall@1")
    assert float(found["recall@1"][0]) == pytest.approx(1 / 3)
    assert float(found["map@3"][1]) == pytest.approx(1 / 3)
    assert float(found["ndcg@3"][1]) == pytest.approx(0.5)
    assert all(float(values[2]) == 0 for values in found.values())


def test_padding_is_no_hit_whatever_the_keys() -> None:
    # Row 1's -1 must not meet row 0's largest item, whose key is one below row 1's first.
    ranked = torch.tensor([[2, 0], [-1, 0]])
    assert hits(ranked, _ragged([[2], [5]])).tolist() == [[True, False], [False, False]]


def test_huge_rows_do_not_overflow() -> None:
    row = 3_000_000_000
    ranked = torch.tensor([[row, row - 1]] * 4)
    assert hits(ranked, _ragged([[row], [row - 1], [0], [row - 1, row]])).tolist() == [
        [True, False],
        [False, True],
        [False, False],
        [True, True],
    ]


def test_ragged_sorts_counts_and_selects() -> None:
    lists = _ragged([[5, 1], [], [7], [2, 9, 0], []])
    assert len(lists) == 5
    assert lists.values.tolist() == [1, 5, 7, 0, 2, 9]
    assert lists.lengths.tolist() == [2, 0, 1, 3, 0]
    assert lists.row_ids().tolist() == [0, 0, 2, 3, 3, 3]
    chosen = lists.rows(np.array([3, 1, 0, 3, 4]))
    assert chosen.indptr.tolist() == [0, 3, 3, 5, 8, 8]
    assert chosen.values.tolist() == [0, 2, 9, 1, 5, 0, 2, 9]
    assert chosen.values.dtype == chosen.indptr.dtype == torch.int64
    assert len(lists.rows(np.array([], np.int64))) == 0
    assert len(_ragged([[]]).rows(torch.tensor([0, 0])).values) == 0
