"""The evaluation protocol on this rank's shard: ranked users, candidate items and metrics."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.graph.halo_exchange import send_to_owners
from cm3_dist.graph.shard import HeldOut, Shard
from cm3_dist.ranking.baselines import baseline_rows
from cm3_dist.ranking.full_ranking import evaluate
from cm3_dist.ranking.user_sample import sample_users


class Evaluator:
    """Ranks the full catalogue for the users of a split. Methods are collective unless they say otherwise.

    Args:
        shard: this rank's.
        settings: cut-offs, block sizes, number of sampled users, seed.
        runtime: this rank.
    """

    def __init__(self, shard: Shard, settings: Settings, runtime: Runtime) -> None:
        self._shard, self._settings, self._runtime = shard, settings, runtime
        self._held_out: dict[str, HeldOut] = {}

    def rank(self, rows: tuple[Tensor, Tensor], split: str) -> dict[str, float]:
        """Metrics of a ranking.

        Args:
            rows: user rows [local users, width] and item rows [local items, width], whose inner product is the score.
            split: "validation" or "test".

        Returns:
            "recall@20" and so on -> mean over the users of all ranks.
        """
        held_out, options = self.held_out(split), self._settings.evaluate
        return evaluate(
            *rows,
            torch.from_numpy(held_out.users),
            held_out.relevant,
            self._shard.seen(held_out.users),
            self.candidates(split),
            options.ks,
            user_block=options.user_block,
            item_block=options.item_block,
            group=self._runtime.rows_group,
        )

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Metrics of ranking by training popularity and at random, with the same protocol."""
        return {name: self.rank(rows, split) for name, rows in self.baseline_rows().items()}

    def baseline_rows(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Rows that rank by popularity and at random. Not collective."""
        return baseline_rows(self._shard, self._settings.train.seed, self._runtime.device)

    def held_out(self, split: str) -> HeldOut:
        """This rank's ranked users and their held-out items. Collective on the first call per split."""
        if split not in self._held_out:
            options, held_out = self._settings.evaluate, self._shard.held_out[split]
            count = options.users if split == "validation" else options.test_users
            if count is not None:
                seed = self._settings.train.seed
                held_out = sample_users(held_out, self._shard.first_user, count, seed, self._runtime)
            self._held_out[split] = held_out
        return self._held_out[split]

    def candidates(self, split: str) -> Tensor:
        """The items that are ranked, [local items] bool: all, or in a cold-start split its held-out items."""
        shard = self._shard
        if shard.manifest.split != "cold_items":
            return torch.from_numpy(shard.is_item)
        wanted = np.unique(shard.held_out[split].relevant.values.numpy())
        asked = send_to_owners(wanted, shard.item_rows, self._runtime.control).table[:, 0] - shard.first_item
        candidates = torch.zeros(shard.item_rows, dtype=torch.bool)
        candidates[torch.from_numpy(asked)] = True
        return candidates
