"""The positives and negatives of a step, drawn part by part, so that they do not depend on the number of ranks.

Each part contributes positives of its own users in proportion to how many it has. All parts finish an epoch after the
same number of steps, and the users of a batch are always local.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cm3_dist.distributed.seeding import Stream, generator
from cm3_dist.errors import InputError
from cm3_dist.graph.shard import Shard

MAX_REDRAWS = 1000
NO_NEGATIVE = "negatives.none"  # code of the errors about users without a negative item


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step: triples in the order of its parts."""

    user: np.ndarray  # [b] int64 local rows
    positive: np.ndarray  # [b] int64 global item rows
    negative: np.ndarray  # [b] int64 global item rows; empty if the positives are also the negatives
    weight: np.ndarray | None = None  # [b] float32 weight of each positive; None: all weigh 1


class BatchSampler:
    """Divides the positives of this rank's parts into the steps of an epoch.

    Args:
        shard: this rank's.
        batch_size: positives per step over all ranks; rounded so that steps are equal.
        negatives: as in the setting of the same name.
        seed: of the run.

    Raises:
        InputError: a user interacted with all trained items and needs a negative.
    """

    def __init__(
        self, shard: Shard, batch_size: int, negatives: Literal["uniform", "in_batch", "local"], seed: int
    ) -> None:
        self._shard, self._negatives, self._seed = shard, negatives, seed
        manifest = shard.manifest
        self.steps = max(1, -(-manifest.train // batch_size))  # per epoch
        self.batch_size = manifest.train / self.steps  # mean over the steps, over all ranks
        edges, stride = shard.interactions, manifest.user_stride
        self._user = np.repeat(np.arange(shard.user_rows, dtype=np.int32), np.diff(edges.indptr))
        self._starts = edges.indptr[np.arange(len(shard.parts) + 1) * stride]  # a part's positives are contiguous
        if negatives != "in_batch":  # ascending: (user, item) interacted
            self._keys = self._user * np.int64(manifest.item_rows) + edges.item
        self._active = np.array([part.active_items for part in manifest.parts], np.int64)
        full = np.flatnonzero(np.diff(edges.indptr) >= self._active.sum())
        if negatives != "in_batch" and len(full):
            raise InputError(
                f"{shard.root}: user row {shard.first_user + int(full[0])} interacted with every trained item, so it "
                "has no negative; use negatives=in_batch",
                NO_NEGATIVE,
            )

    def size(self, step: int) -> int:
        """Positives of a step over all ranks."""
        return sum(
            _cut(part.train, step, self.steps)[1] - _cut(part.train, step, self.steps)[0]
            for part in self._shard.manifest.parts
        )

    @property
    def largest(self) -> int:
        """Upper bound of the positives per step over all ranks."""
        return sum(-(-part.train // self.steps) for part in self._shard.manifest.parts)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, beginning with `first_step`."""
        orders = []
        for index, part in enumerate(self._shard.parts):
            count = int(self._starts[index + 1] - self._starts[index])
            orders.append(self._starts[index] + generator(Stream.ORDER, self._seed, epoch, part).permutation(count))
        for step in range(first_step, self.steps):
            yield self._step(orders, epoch, step)

    def _step(self, orders: list[np.ndarray], epoch: int, step: int) -> Batch:
        users, positives, negatives, weights = [], [], [], []
        parts = zip(self._shard.parts, self._shard.graphs, orders, self._starts[:-1], strict=True)
        for part, graph, order, first in parts:
            begin, end = _cut(len(order), step, self.steps)
            chosen = order[begin:end]
            user = self._user[chosen].astype(np.int64)
            users.append(user)
            positives.append(self._shard.interactions.item[chosen].astype(np.int64))
            if graph.weight is not None:
                weights.append(graph.weight[chosen - first])
            if self._negatives != "in_batch":
                negatives.append(self._draw(user, part, generator(Stream.NEGATIVES, self._seed, epoch, step, part)))
        empty = np.empty(0, np.int64)
        return Batch(
            np.concatenate(users),
            np.concatenate(positives),
            np.concatenate(negatives) if negatives else empty,
            np.concatenate(weights) if weights else None,
        )

    def _draw(self, user: np.ndarray, part: int, rng: np.random.Generator) -> np.ndarray:
        """Draws one trained item per user that the user did not interact with: of all parts, or of `part` if local."""
        local = self._negatives == "local"
        if local and self._active[part] == 0:
            raise InputError(f"{self._shard.root}: part {part} has no trained item; use negatives=uniform", NO_NEGATIVE)
        parts = np.array([part]) if local else np.arange(len(self._active))
        ends = np.cumsum(self._active[parts])
        item = np.empty_like(user)
        todo = np.arange(len(user))
        for _ in range(MAX_REDRAWS):
            number = rng.integers(0, ends[-1], len(todo))
            slot = np.searchsorted(ends, number, side="right")
            row = parts[slot] * self._shard.manifest.item_stride + number - (ends - self._active[parts])[slot]
            item[todo] = row
            wanted = user[todo] * np.int64(self._shard.manifest.item_rows) + row
            place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            todo = todo[self._keys[place] == wanted]
            if not len(todo):
                return item
        where, instead = (f"part {part}", "uniform") if local else ("the catalogue", "in_batch")
        raise InputError(
            f"{self._shard.root}: user row {self._shard.first_user + int(user[todo[0]])} interacted with nearly every "
            f"trained item of {where}: no negative in {MAX_REDRAWS} draws; use negatives={instead}",
            NO_NEGATIVE,
        )


def _cut(count: int, step: int, steps: int) -> tuple[int, int]:
    return count * step // steps, count * (step + 1) // steps
