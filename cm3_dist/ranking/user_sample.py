"""A sample of the users that have held-out interactions, for evaluations where ranking all of them takes too long."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.seeding import Stream, key, uniform_by_row
from cm3_dist.graph.shard import HeldOut

BITS = 53  # of the numbers that are drawn


def sample_users(held_out: HeldOut, first_user: int, count: int, seed: int, runtime: Runtime) -> HeldOut:
    """Keeps `count` of the users of all ranks, or all if there are fewer. Collective.

    Every user draws a number by seed and row, and the smallest stay: the sample depends on neither W nor the order.

    Args:
        held_out: this rank's users and what is held out for them.
        first_user: global row of this rank's local row 0.
        count: users over all ranks, at least 1.
        seed: of the run.
        runtime: its planning group agrees on the cut.
    """
    drawn = uniform_by_row(key(Stream.EVALUATION, seed), held_out.users + first_user)
    if _over_ranks(len(drawn), runtime) <= count:
        return held_out
    # The cut is bisected, so that nothing of the sample's size has to travel.
    low, high = 0.0, 1.0  # fewer than `count` users lie below `low`, at least so many below `high`
    ordered = np.sort(drawn)
    for _ in range(BITS + 1):
        middle = (low + high) / 2
        if _over_ranks(int(np.searchsorted(ordered, middle)), runtime) < count:
            low = middle
        else:
            high = middle
    kept = np.flatnonzero(drawn < high)
    return HeldOut(held_out.users[kept], held_out.relevant.rows(torch.from_numpy(kept)))


def _over_ranks(count: int, runtime: Runtime) -> int:
    total = torch.tensor(count)
    dist.all_reduce(total, group=runtime.control)
    return int(total)
