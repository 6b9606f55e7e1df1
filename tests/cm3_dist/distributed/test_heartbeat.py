"""Ranks that lose a connection name the rank that is missing; test_lost_ranks.py does the same with processes."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from cm3_dist.distributed.heartbeat import SILENCE, Heartbeat
from cm3_dist.errors import LostRankError
from tests.support.fake_clock import FakeClock

BROKEN = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:49363")


class Ranks:
    """Three ranks that share a store; `alive` are those that still write heartbeats while another one waits."""

    def __init__(self) -> None:
        self.time = FakeClock(self._beat)
        self.store, self.alive = dist.HashStore(), {0, 1, 2}
        self.all = [
            Heartbeat(self.store, rank, 3, 600, clock=self.time.clock, sleep=self.time.sleep) for rank in range(3)
        ]

    def _beat(self) -> None:
        for rank in self.alive:
            self.all[rank].beat()

    def lose(self, rank: int) -> LostRankError:
        """What `rank` reports when its connection breaks."""
        with pytest.raises(LostRankError) as caught:
            self.all[rank].give_up(BROKEN)
        return caught.value


def test_a_dead_rank_is_named_and_the_first_survivor_reports_it() -> None:
    ranks = Ranks()
    ranks.alive.remove(1)
    ranks.all[2]._give_reason("lost connection")
    first, second = ranks.lose(0), ranks.lose(2)
    assert "rank 1 ended or stopped responding: no heartbeat for more than 5 s; checkpoints are kept" in str(first)
    assert "rank 1 ended" in str(second)
    assert first.is_reporter
    assert not second.is_reporter
    assert ranks.time.seconds >= SILENCE


def test_a_rank_that_is_alive_but_takes_no_part() -> None:
    ranks = Ranks()
    ranks.all[0]._give_reason("lost connection")
    reason = str(ranks.lose(1))
    assert "rank 2 kept the others waiting for machine.timeout=600 s, still alive" in reason
    assert "rank 0" not in reason


def test_a_rank_that_failed_is_quoted_and_takes_the_blame_alone() -> None:
    ranks = Ranks()
    ranks.all[2].give_up(ValueError("no such\nrow"))
    assert "rank 2 ended: ValueError: no such row" in str(ranks.lose(0))
    ranks.alive.remove(0)  # it gave up because of rank 2
    reason = str(ranks.lose(1))
    assert "rank 2 ended: ValueError: no such row" in reason
    assert "rank 0" not in reason


def test_other_errors_are_left_alone() -> None:
    Ranks().all[0].give_up(RuntimeError("shapes differ"))  # raises nothing


def test_a_store_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()

    def gone(rank: int) -> None:
        raise dist.DistNetworkError("failed to recv")

    monkeypatch.setattr(ranks.all[1], "_read", gone)
    lost = ranks.lose(1)
    assert "(rank 0 or torchrun) has ended or cannot be reached" in str(lost)
    assert lost.is_reporter


def test_the_thread_writes_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3_dist.distributed.heartbeat.INTERVAL", 0.001)
    heartbeat, beats = Ranks().all[0], threading.Semaphore(0)
    monkeypatch.setattr(heartbeat, "beat", beats.release)
    heartbeat.start()
    assert all(beats.acquire(timeout=60) for _ in range(3))
    heartbeat.stop()
