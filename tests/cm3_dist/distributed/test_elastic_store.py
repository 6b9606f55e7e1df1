"""Ranks that are started again do not take what the start before left in the store for their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from cm3_dist.distributed.elastic_store import agree_on_name

SOON, LATE = timedelta(seconds=0.3), timedelta(seconds=30)


def start(store: dist.Store, ranks: int) -> set[str]:
    with ThreadPoolExecutor(ranks) as threads:
        return set(threads.map(lambda rank: agree_on_name(store, rank, ranks, LATE), range(ranks)))


def test_each_start_has_a_name_of_its_own() -> None:
    store = dist.HashStore()
    first, second = start(store, 4), start(store, 4)
    assert len(first) == len(second) == 1
    assert first != second


def test_questions_that_nobody_waits_for_any_more_do_no_harm() -> None:
    """Of a start in which rank 1 asked, and rank 0 ended before it could answer; and of one the other way round."""
    store = dist.HashStore()
    with pytest.raises(dist.DistStoreError, match="rank 0 was not there in time"):
        agree_on_name(store, 1, 3, SOON)
    with pytest.raises(dist.DistStoreError, match="rank 1, 2 was not there in time"):
        agree_on_name(store, 0, 3, SOON)
    assert len(start(store, 3)) == 1
