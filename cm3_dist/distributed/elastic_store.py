"""A store of its own for each start of the ranks, also when torchrun restarts them.

torchrun reuses one TCPStore across its `--max-restarts`, so the addresses of dead ranks remain in it and new ranks fail
with "Connection refused" (https://github.com/pytorch/pytorch/issues/135712). Each start therefore uses a key prefix
of its own, chosen by rank 0. torchrun's restart count cannot be the prefix: it differs between machines when one of
them joins later. TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has rank 0 hold a new store per start, which also works, but only
torchrun itself reads it, so its user would have to set it; and with rank 0 the store would be lost, and with the store
what names a lost rank (heartbeat.py).
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

_POLL = 0.01  # seconds between two looks into the store


def store_of_this_start(rank: int, world_size: int, timeout: timedelta) -> dist.Store | None:
    """The store of torchrun under a prefix of this start; None if the store is new anyway. Collective.

    Raises:
        DistError: the store or a rank did not respond in time.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, world_size, is_master=False, timeout=timeout)
    return dist.PrefixStore(agree_on_prefix(dist.PrefixStore("start", store), rank, world_size, timeout), store)


def agree_on_prefix(
    store: dist.Store,
    rank: int,
    world_size: int,
    timeout: timedelta,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """A random name that rank 0 chooses for this start, whatever earlier starts left in `store`. Collective.

    Every other rank writes a random question, and rank 0 answers the latest question of each rank (which may still be
    one of an earlier start) until all ranks have confirmed this start's name.

    Raises:
        DistStoreError: a rank did not respond in time.
    """
    deadline = clock() + timeout.total_seconds()

    def wait_for(missing: list[int]) -> None:
        if clock() > deadline:
            ranks = ", ".join(map(str, missing))
            raise dist.DistStoreError(f"no response from rank {ranks} within machine.timeout")
        sleep(_POLL)

    if rank:
        question = uuid.uuid4().hex
        store.set(f"question/{rank}", question)
        while not store.check([f"answer/{question}"]):
            wait_for([0])
        name = store.get(f"answer/{question}").decode()
        store.set(f"confirmed/{name}/{rank}", "")
        return name
    name, waiting = uuid.uuid4().hex, list(range(1, world_size))
    while waiting:
        for other in waiting:
            if store.check([f"question/{other}"]):
                store.set(f"answer/{store.get(f'question/{other}').decode()}", name)
        waiting = [other for other in waiting if not store.check([f"confirmed/{name}/{other}"])]
        if waiting:
            wait_for(waiting)
    return name
