"""Bytes that this rank sends to other ranks, by kind, counted where they are sent.

The three functions return the bytes that a collective moves; `cm3_dist.capacity` predicts with the same ones.
Conventions: data that a rank keeps for itself is not counted; a gather sends a rank's block to every other rank; a sum
is a ring all-reduce, which sends every number nearly twice; a broadcast is counted at its source.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal[
    "ids",  # node ids and their counts, while a step is planned
    "planning sums",  # a few numbers per step, while it is planned
    "user-item rows",  # rows of remote neighbours, every layer, and their gradients back
    "item-graph rows",
    "positive rows",  # the batch's items that another rank owns, and their gradients back
    "loss rows",  # the batch's rows, gathered for the pairs
    "loss sums",
    "dense gradients",
    "ranked items",  # evaluation: item blocks
    "evaluation sums",
]


def to_others(counts: Sequence[int], rank: int, row_bytes: int) -> int:
    """Bytes of an all-to-all that sends `counts[r]` rows to rank r."""
    return (sum(counts) - counts[rank]) * row_bytes


def gathered(block_bytes: int, world_size: int) -> int:
    """Bytes of an all-gather of equal blocks, or of a broadcast at its source."""
    return block_bytes * (world_size - 1)


def summed(buffer_bytes: int, world_size: int) -> int:
    """Bytes of a ring all-reduce, rounded up."""
    return -(-2 * buffer_bytes * (world_size - 1) // world_size)


class Traffic:
    """Byte counters by kind; safe to use from any thread."""

    def __init__(self) -> None:
        self._sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: Kind, sent: int) -> None:
        """Counts `sent` bytes."""
        with self._lock:
            self._sent[kind] += sent

    def take(self) -> dict[str, int]:
        """Returns the bytes by kind since the last call."""
        with self._lock:
            sent, self._sent = dict(self._sent), Counter()
        return sent

    def scalars(self) -> dict[str, float]:
        """`take` in MiB by TensorBoard tag; empty for one process."""
        return {f"traffic/{kind.replace(' ', '_')}_mib": sent / 2**20 for kind, sent in self.take().items() if sent}


# One counter per process, which is one rank.
traffic = Traffic()
