"""Looks a run over after each evaluation, and says what `health` makes of it, once a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.graph.csr_lists import Ragged
from cm3_dist.graph.shard import HeldOut
from cm3_dist.monitoring.health_rules import Cold, Signs, warnings
from cm3_dist.ranking.full_ranking import evaluate
from cm3_dist.training.sphere import look_at_sphere

if TYPE_CHECKING:
    from cm3_dist.monitoring.monitor import Monitor
    from cm3_dist.training.trainer import Trainer

COLD_K = 20
LEAST_ITEMS, LEAST_USERS = 100, 50  # cold items to rank, and users who have one held out, for a judgement


class Checkup:
    """Collects the signs of a run; `said` holds the warnings so far (on rank 0)."""

    def __init__(self, trainer: Trainer, monitor: Monitor) -> None:
        self.said: dict[str, str] = {}
        self._trainer, self._monitor = trainer, monitor
        self._cold = _cold_held_out(trainer)

    def look(self, step: int, epoch: int, rows: tuple[Tensor, Tensor]) -> None:
        """After an evaluation with final `rows`, `step` steps done. Collective."""
        sphere, cold = look_at_sphere(self._trainer), self._rank_cold(rows)
        scalars = {
            "health/off_sphere": sum(sphere.off.values()) / max(1, sphere.items * len(sphere.largest)),
            "health/fused_cosine": sphere.alike,
        }
        if cold is not None:
            scalars["health/cold_over_random"] = cold.recall / cold.random
        self._monitor.scalars(step, scalars)
        means = self._monitor.epoch_means()
        if means is None:
            return
        signs = Signs(epoch, step, means["alignment"], means["user_uniformity"], sphere, cold)
        for sign, line in warnings(signs, self._trainer.settings).items():
            if sign not in self.said:
                self.said[sign] = line
                self._monitor.warn(step, line)

    def _rank_cold(self, rows: tuple[Tensor, Tensor]) -> Cold | None:
        if self._cold is None:
            return None
        trainer, (held_out, items) = self._trainer, self._cold
        options = trainer.settings.evaluate
        metrics = evaluate(
            *rows,
            torch.from_numpy(held_out.users),
            held_out.relevant,
            trainer.shard.seen(held_out.users),
            torch.from_numpy(trainer.shard.is_item & (trainer.shard.item_degree == 0)),
            [COLD_K],
            user_block=options.user_block,
            item_block=options.item_block,
            group=trainer.runtime.rows_group,
        )
        return Cold(metrics[f"recall@{COLD_K}"], COLD_K / items, COLD_K, items)


def _cold_held_out(trainer: Trainer) -> tuple[HeldOut, int] | None:
    """Held-out interactions of the validation with items that have no training interaction, and how many such items.

    None where there are too few. Collective.
    """
    manifest, held_out = trainer.manifest, trainer.evaluator.held_out("validation")
    items = sum(part.items - part.active_items for part in manifest.parts)
    active = torch.tensor([part.active_items for part in manifest.parts])
    relevant = held_out.relevant
    # A part's trained items come first.
    cold = relevant.values % manifest.item_stride >= active[relevant.values // manifest.item_stride]
    user = relevant.row_ids()[cold]
    count = torch.tensor(len(user.unique()))
    dist.all_reduce(count, group=trainer.runtime.planning)
    if items < LEAST_ITEMS or count < LEAST_USERS:
        return None
    mine, place = user.unique(return_inverse=True)
    lists = Ragged.from_pairs(place.numpy(), relevant.values[cold].numpy(), len(mine))
    return HeldOut(held_out.users[mine.numpy()], lists), items
