"""Sampling of the users that are ranked in an evaluation, for when ranking all of them takes too long."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.seeding import Stream, key, uniform_by_row
from cm3_dist.graph.shard import HeldOut

BITS = 53  # of the random numbers


def sample_users(held_out: HeldOut, first_user: int, count: int, seed: int, runtime: Runtime) -> HeldOut:
    """Keeps `count` of the users of all ranks, or all if there are fewer. Collective.

    Every user gets a random number keyed by seed and row, and those with the smallest numbers are kept. The sample does
    not depend on the number of ranks.

    Args:
        held_out: this rank's users and their held-out items.
        first_user: global row of this rank's local row 0.
        count: users over all ranks, at least 1.
        seed: of the run.
        runtime: the ranks agree on the threshold on its planning group.
    """
    drawn = uniform_by_row(key(Stream.EVALUATION, seed), held_out.users + first_user)
    if _over_ranks(len(drawn), runtime) <= count:
        return held_out
    # The threshold is found by bisection, so that only counts are exchanged.
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
