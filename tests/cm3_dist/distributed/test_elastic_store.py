"""Restarted ranks do not mistake what an earlier start left in the store for their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from cm3_dist.distributed.elastic_store import agree_on_prefix
from tests.support.fake_clock import FakeClock

MINUTE = timedelta(seconds=60)


def start(store: dist.Store, ranks: int) -> set[str]:
    with ThreadPoolExecutor(ranks) as threads:
        return set(threads.map(lambda rank: agree_on_prefix(store, rank, ranks, MINUTE), range(ranks)))


def test_each_start_has_a_prefix_of_its_own() -> None:
    store = dist.HashStore()
    first, second = start(store, 4), start(store, 4)
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize(("rank", "missing"), [(1, "rank 0"), (0, "rank 1, 2")])
def test_a_start_that_failed_leaves_nothing_that_harms(rank: int, missing: str) -> None:
    store, time = dist.HashStore(), FakeClock()
    with pytest.raises(dist.DistStoreError, match=f"no response from {missing} within"):
        agree_on_prefix(store, rank, 3, MINUTE, clock=time.clock, sleep=time.sleep)
    assert time.seconds == pytest.approx(60, abs=0.1)
    assert len(start(store, 3)) == 1
