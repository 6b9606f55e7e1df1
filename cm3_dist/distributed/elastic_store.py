"""How the ranks that torchrun started find each other, also when torchrun starts them again.

torchrun keeps one store through all of its `--max-restarts`, with what the ranks of the start before left in it: the
new ranks would call where nobody lives any more (https://github.com/pytorch/pytorch/issues/135712; with torch
2.13 "Connection refused" from gloo). So each start has a corner of the store to itself, named by rank 0. torchrun's
count of restarts cannot name it: it differs between machines when one of them joins later.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_PAUSE = 0.01  # seconds between two looks


def store_of_this_start(rank: int, world_size: int, timeout: timedelta) -> dist.Store | None:
    """The corner of torchrun's store that belongs to this start; None when the store is new anyway. Collective.

    Raises:
        DistError: the store, or a rank, was not there in time.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, world_size, is_master=False, timeout=timeout)
    return dist.PrefixStore(agree_on_name(dist.PrefixStore("start", store), rank, world_size, timeout), store)


def agree_on_name(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that rank 0 chose in this start, whatever earlier starts left in `store`.

    Every other rank asks with a number that it draws; rank 0 answers whatever was asked last, which may be a question
    of an earlier start, until all have said that they got the answer.

    Raises:
        DistStoreError: a rank was not there in time.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    if rank:
        question = uuid.uuid4().hex
        store.set(f"asks/{rank}", question)
        _await(store, f"answer/{question}", deadline, "rank 0")
        name = store.get(f"answer/{question}").decode()
        store.set(f"got/{name}/{rank}", "")
        return name
    name = uuid.uuid4().hex
    waiting = set(range(1, world_size))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", name)
        waiting = {other for other in waiting if not store.check([f"got/{name}/{other}"])}
        _in_time(deadline, f"rank {', '.join(map(str, sorted(waiting)))}")
        time.sleep(_PAUSE)
    return name


def _await(store: dist.Store, key: str, deadline: float, whom: str) -> None:
    while not store.check([key]):
        _in_time(deadline, whom)
        time.sleep(_PAUSE)


def _in_time(deadline: float, whom: str) -> None:
    if time.monotonic() > deadline:
        raise dist.DistStoreError(f"{whom} was not there in time (machine.timeout)")
