"""Ranks that wait in vain name the one that is missing; with processes in test_lost_ranks.py."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from cm3_dist.distributed import heartbeat as vigil
from cm3_dist.distributed.heartbeat import Vigil
from cm3_dist.errors import LostRankError

BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:49363")


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Vigil]]:
    monkeypatch.setattr(vigil, "BEAT", 0.05)
    monkeypatch.setattr(vigil, "SILENCE", 1.0)
    store = dist.TCPStore("127.0.0.1", 0, 1, True)
    made = [Vigil(store, rank, 3, 600) for rank in range(3)]
    yield made
    for each in made:
        each.end()


def lost(of: Vigil, error: Exception = BROKEN) -> LostRankError:
    with pytest.raises(LostRankError) as caught:
        of.give_up(error)
    return caught.value


def test_a_dead_rank(ranks: list[Vigil]) -> None:
    ranks[1].end()  # no more signs of life
    time.sleep(0.1)
    found = lost(ranks[0])
    assert "rank 1 ended or stands still: no sign of life" in str(found)
    assert str(found).endswith("start again, a training with --resume auto")
    assert found.speaks


def test_the_first_that_is_left_speaks(ranks: list[Vigil]) -> None:
    ranks[0].end()
    assert lost(ranks[1]).speaks
    second = lost(ranks[2])
    assert "rank 0 ended or stands still" in str(second)
    assert not second.speaks


def test_a_rank_that_lives_but_does_not_take_part(ranks: list[Vigil]) -> None:
    ranks[0]._leave("waits")
    assert "rank 2 lives, but has kept the others waiting for machine.timeout=600 s" in str(lost(ranks[1]))


def test_a_rank_that_failed_says_why_and_takes_nobodys_blame(ranks: list[Vigil]) -> None:
    ranks[2].give_up(ValueError("no such\nrow"))
    assert "rank 2 ended: ValueError: no such row" in str(lost(ranks[0]))
    ranks[0].end()  # it gave up because of rank 2, and is no cause of its own
    said = str(lost(ranks[1]))
    assert "rank 2 ended: ValueError: no such row" in said
    assert "rank 0" not in said


def test_errors_of_other_kinds_stay_what_they_are(ranks: list[Vigil]) -> None:
    ranks[0].give_up(RuntimeError("shapes differ"))  # nothing is raised


def test_a_store_that_is_gone(ranks: list[Vigil], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(rank: int) -> None:
        raise dist.DistNetworkError("failed to recv")

    monkeypatch.setattr(ranks[1], "_look", gone)
    found = lost(ranks[1])
    assert "rank 0 or torchrun's, has ended or is out of reach" in str(found)
    assert found.speaks
