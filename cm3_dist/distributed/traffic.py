"""Bytes that this rank sends to other ranks, by kind, counted where they are sent.

The three functions say what a collective moves, and `cm3_dist.capacity` reckons with the same ones. Conventions: what a
rank keeps for itself is not counted; a gather sends a rank's block to every other one; a sum is the ring's, which sends
every number nearly twice; a broadcast counts at its source.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal[
    "ids",  # node ids and their counts, while a step is planned
    "planning sums",  # a few numbers a step, likewise
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
    """An all-to-all of `counts` rows a rank."""
    return (sum(counts) - counts[rank]) * row_bytes


def gathered(block_bytes: int, world_size: int) -> int:
    """A gather of equal blocks, or a broadcast at its source."""
    return block_bytes * (world_size - 1)


def summed(buffer_bytes: int, world_size: int) -> int:
    """A sum over the ranks, in a ring, rounded up to whole bytes."""
    return -(-2 * buffer_bytes * (world_size - 1) // world_size)


class Traffic:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._sent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: Kind, sent: int) -> None:
        """Counts `sent` bytes."""
        with self._lock:
            self._sent[kind] += sent

    def take(self) -> dict[str, int]:
        """Bytes by kind since the last call."""
        with self._lock:
            sent, self._sent = dict(self._sent), Counter()
        return sent

    def scalars(self) -> dict[str, float]:
        """`take`, in MiB by TensorBoard tag; nothing for one process."""
        return {f"traffic/{kind.replace(' ', '_')}_mib": sent / 2**20 for kind, sent in self.take().items() if sent}


# A process is a rank.
traffic = Traffic()
