"""Sharded full ranking compared with brute force: ranks, block sizes, ties, masks, cold candidates, bad rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3_dist.graph.csr_lists import CsrLists
from cm3_dist.ranking.full_ranking import evaluate, top_k
from cm3_dist.ranking.topk import top_columns
from partition.errors import InputError
from tests.support import reference as ref
from tests.support.ranks import run_ranks

PARTS, USER_STRIDE, ITEM_STRIDE = 4, 11, 17
USERS, ITEMS = PARTS * USER_STRIDE, PARTS * ITEM_STRIDE
KS = (1, 5, 20)
BLOCKS = [(4096, 8192), (3, 5), (7, ITEM_STRIDE), (2, 4)]
CASES = ("gaussian", "ties", "popularity", "cold", "few", "wide k")
DEEP = 80  # more than there are items
WORLDS = (1, 2, 4)


@dataclass(frozen=True)
class Case:
    """A whole evaluation. `relevant` and `seen`: sets of global item rows by global user row."""

    user_rows: Tensor
    item_rows: Tensor
    users: list[int]
    relevant: dict[int, set[int]]
    seen: dict[int, set[int]]
    candidates: Tensor
    ks: tuple[int, ...]


def _case(name: str) -> Case:
    rng = np.random.default_rng(CASES.index(name))
    if name == "popularity":
        user_rows, item_rows = torch.ones(USERS, 1), torch.from_numpy(rng.integers(0, 4, (ITEMS, 1))).float()
    elif name == "ties":
        user_rows = torch.from_numpy(rng.integers(-1, 2, (USERS, 2))).float()
        item_rows = torch.from_numpy(rng.integers(-1, 2, (ITEMS, 2))).float()
    else:
        user_rows = torch.from_numpy(rng.standard_normal((USERS, 6), np.float32))
        item_rows = torch.from_numpy(rng.standard_normal((ITEMS, 6), np.float32))
    candidates = torch.ones(ITEMS, dtype=torch.bool)
    candidates[ITEM_STRIDE - 2 :: ITEM_STRIDE] = False  # padding ends every part
    candidates[ITEM_STRIDE - 1 :: ITEM_STRIDE] = False
    if name == "cold":
        candidates &= torch.from_numpy(rng.random(ITEMS) < 0.2)
    if name == "few":
        candidates[:] = False
        candidates[[3, 40, 41]] = True
    # Part 1 has no user to evaluate, the others have different numbers of them.
    users = [user for user in range(USERS) if user // USER_STRIDE != 1 and rng.random() < 0.3 + user / 2 / USERS]
    allowed = candidates.nonzero()[:, 0].numpy()
    relevant, seen = {}, {}
    for user in users:
        items = rng.permutation(allowed)
        wanted = min(len(items), int(rng.integers(1, 25)))
        relevant[user] = set(items[:wanted].tolist())
        others = np.setdiff1d(np.arange(ITEMS), items[:wanted])
        seen[user] = set(rng.permutation(others)[: rng.choice([0, 4, 30, len(others)])].tolist())
    return Case(user_rows, item_rows, users, relevant, seen, candidates, (DEEP,) if name == "wide k" else KS)


def _brute_force(case: Case) -> tuple[dict[int, list[int]], dict[str, float]]:
    """Ranked list of every user, and mean metrics."""
    scores = (case.user_rows.double() @ case.item_rows.double().T).tolist()
    allowed = set(case.candidates.nonzero()[:, 0].tolist())
    ranked = {user: ref.ranking(scores[user], allowed - case.seen[user], max(case.ks)) for user in case.users}
    rows = [
        {name: value for k in case.ks for name, value in ref.metrics(ranked[user], case.relevant[user], k).items()}
        for user in case.users
    ]
    return ranked, {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _ragged(lists: list[set[int]]) -> CsrLists:
    row = np.repeat(np.arange(len(lists)), [len(values) for values in lists])
    return CsrLists.from_pairs(row, np.array([v for values in lists for v in sorted(values)], np.int64), len(lists))


def _share(case: Case, rank: int, world_size: int) -> tuple[Any, ...]:
    """What `rank` passes to `evaluate`."""
    users, items = USERS // world_size, ITEMS // world_size
    own = [user for user in case.users if user // users == rank]
    part = slice(rank * items, (rank + 1) * items)
    return (
        case.user_rows[rank * users : (rank + 1) * users],
        case.item_rows[part],
        torch.tensor([user - rank * users for user in own], dtype=torch.int64),
        _ragged([case.relevant[user] for user in own]),
        _ragged([case.seen[user] for user in own]),
        case.candidates[part],
    )


Found = dict[tuple[str, tuple[int, int]], tuple[dict[str, float], list[list[float]], list[list[int]]]]


def _evaluations(group: dist.ProcessGroup | None) -> Found:
    """Metrics, and this rank's lists, for every case and block size."""
    found: Found = {}
    rank = dist.get_rank(group) if group else 0
    world_size = dist.get_world_size(group) if group else 1
    for name in CASES:
        case = _case(name)
        rows_u, rows_i, users, relevant, seen, candidates = _share(case, rank, world_size)
        for blocks in BLOCKS:
            options: dict[str, Any] = {"user_block": blocks[0], "item_block": blocks[1], "group": group}
            metrics = evaluate(rows_u, rows_i, users, relevant, seen, candidates, case.ks, **options)
            score, row = top_k(rows_u, rows_i, users, seen, candidates, max(case.ks), **options)
            found[name, blocks] = metrics, score.tolist(), row.tolist()
    return found


def _message(call: Any) -> str:
    try:
        call()
    except (InputError, FloatingPointError) as error:
        return f"{type(error).__name__}[{getattr(error, 'code', '')}]"
    return "no error"


def _refusals(group: dist.ProcessGroup | None) -> list[str]:
    """Errors of every rank if only the last rank has a bad user or item row, and if no rank has a user."""
    rank, world_size = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
    rows_u, rows_i, users, relevant, seen, candidates = _share(_case("gaussian"), rank, world_size)
    last = rank == world_size - 1
    bad_u, bad_i = rows_u.clone(), rows_i.clone()
    bad_u[2, 3] = bad_i[2, 3] = torch.nan
    nobody, nothing = torch.empty(0, dtype=torch.int64), _ragged([])
    return [
        _message(
            lambda: evaluate(bad_u if last else rows_u, rows_i, users, relevant, seen, candidates, KS, group=group)
        ),
        _message(
            lambda: evaluate(rows_u, bad_i if last else rows_i, users, relevant, seen, candidates, KS, group=group)
        ),
        _message(lambda: evaluate(rows_u, rows_i, nobody, nothing, nothing, candidates, KS, group=group)),
    ]


def _on_ranks() -> dict[int, tuple[Found, list[str]]]:
    """The same on groups of 1, 2 and 4 ranks, by group size; on the first ranks only where the group is smaller."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for world_size in WORLDS:
        group = dist.new_group(list(range(world_size)))
        if dist.get_rank() < world_size:
            found[world_size] = _evaluations(group), _refusals(group)
    dist.barrier()
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def alone() -> Found:
    return _evaluations(None)


@pytest.fixture(scope="module")
def ranks() -> list[dict[int, tuple[Found, list[str]]]]:
    return run_ranks(_on_ranks, max(WORLDS))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_one_process_equals_brute_force(alone: Found, name: str, blocks: tuple[int, int]) -> None:
    case = _case(name)
    ranked, expected = _brute_force(case)
    metrics, score, row = alone[name, blocks]
    assert metrics == pytest.approx(expected, abs=1e-12)
    for user, scores, rows in zip(case.users, score, row, strict=True):
        length = len(ranked[user])
        assert rows == ranked[user] + [-1] * (max(case.ks) - length), user
        exact = (case.item_rows.double() @ case.user_rows[user].double())[rows[:length]].tolist()
        assert scores[:length] == pytest.approx(exact, abs=1e-5)
        assert set(scores[length:]) <= {-float("inf")}


def test_the_cases_cover_what_they_should() -> None:
    case = _case("ties")
    assert len({len(items) for items in case.seen.values()}) > 2
    assert min(len(items) for items in case.seen.values()) == 0
    scores = case.user_rows @ case.item_rows.T
    assert len(scores.unique()) < 10  # hardly a cut-off without a tie across it
    lengths = [len(row) for name in CASES for row in _brute_force(_case(name))[0].values()]
    assert min(lengths) < max(KS) < max(len(items) for items in _case("gaussian").relevant.values())
    counts = [sum(user // USER_STRIDE == part for user in case.users) for part in range(PARTS)]
    assert counts[1] == 0
    assert len(set(counts)) == PARTS


@pytest.mark.parametrize("world_size", WORLDS)
def test_ranks_find_the_same(alone: Found, ranks: list[Any], world_size: int) -> None:
    found = [rank[world_size][0] for rank in ranks[:world_size]]
    for key, (metrics, score, row) in alone.items():
        assert [own[key][0] for own in found] == [found[0][key][0]] * world_size, key
        assert found[0][key][0] == pytest.approx(metrics, abs=1e-12), key
        assert [rows for own in found for rows in own[key][2]] == row, key
        np.testing.assert_allclose([s for own in found for s in own[key][1]], score, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("world_size", WORLDS)
def test_a_bad_row_is_an_error_on_every_rank(ranks: list[Any], world_size: int) -> None:
    for messages in [rank[world_size][1] for rank in ranks[:world_size]] + [_refusals(None)]:
        assert messages == [
            "NotFiniteError[training.not-finite]",
            "NotFiniteError[training.not-finite]",
            "AgreedError[data.no-held-out]",
        ]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_top_breaks_ties_by_column(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 9))
    value = st.sampled_from([-float("inf"), -1.0, 0.0, 1.0])
    rows = data.draw(st.lists(st.lists(value, min_size=columns, max_size=columns), min_size=1, max_size=4))
    k = data.draw(st.integers(1, columns))
    best, place = top_columns(torch.tensor(rows), k)
    for row, scores, columns_found in zip(rows, best.tolist(), place.tolist(), strict=True):
        expected = ref.ranking(row, range(columns), k)
        assert scores == [row[column] for column in expected]
        finite = sum(score > -float("inf") for score in scores)
        assert columns_found[:finite] == expected[:finite]
