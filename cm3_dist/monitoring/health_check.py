"""Collects the signs that health_rules.py judges, after each evaluation, and shows each warning once."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.graph.csr_lists import CsrLists
from cm3_dist.graph.shard import HeldOut, Shard
from cm3_dist.model.item_encoder import ItemEncoder
from cm3_dist.model.presence import presence
from cm3_dist.monitoring.health_rules import ColdItems, Fusion, Signs, warnings
from cm3_dist.monitoring.monitor import Monitor
from cm3_dist.pipeline.item_features import ItemFeatures
from cm3_dist.ranking.full_ranking import evaluate

SAMPLE = 4096  # items per rank whose fusion is inspected
TOLERANCE = 1e-3  # of a norm; float32 keeps it to 1e-6
COLD_K = 20
LEAST_ITEMS, LEAST_USERS = 100, 50  # cold items, and users who have one held out, for a judgement


class HealthCheck:
    """Looks for signs of a run that goes wrong. The constructor is collective.

    Args:
        monitor: shows the warnings.
        shard: of this rank.
        features: of its items.
        encoder: of the model that is trained.
        validation: the users that are ranked, with their held-out items.
        settings: of the run.
        runtime: this rank.
    """

    def __init__(
        self,
        monitor: Monitor,
        shard: Shard,
        features: ItemFeatures,
        encoder: ItemEncoder,
        validation: HeldOut,
        settings: Settings,
        runtime: Runtime,
    ) -> None:
        self.warnings: dict[str, str] = {}  # sign -> line, of all warnings so far; on rank 0 only
        self._monitor, self._shard, self._features, self._encoder = monitor, shard, features, encoder
        self._settings, self._runtime = settings, runtime
        self._items = np.flatnonzero(shard.is_item)
        self._cold = cold_held_out(shard, validation, runtime)

    def after_evaluation(self, step: int, epoch: int, rows: tuple[Tensor, Tensor] | None) -> None:
        """Writes health scalars and shows new warnings. Collective.

        Args:
            step: steps done.
            epoch: of the last step.
            rows: final user and item rows of this rank, [., width] each; None if nothing was evaluated, for lack of
                validation interactions.
        """
        fusion = inspect_fusion(self._items, self._features, self._encoder, self._runtime)
        cold = None if rows is None else self._rank_cold(rows)
        scalars = {
            "health/off_sphere": sum(fusion.off_sphere.values()) / max(1, fusion.items * len(fusion.largest)),
            "health/fused_cosine": fusion.cosine,
        }
        if cold is not None:
            scalars["health/cold_over_random"] = cold.recall / cold.random
        self._monitor.scalars(step, scalars)
        means = self._monitor.epoch_means()
        if means is None:
            return
        signs = Signs(epoch, step, means["alignment"], means["user_uniformity"], fusion, cold)
        for sign, line in warnings(signs, self._settings).items():
            if sign not in self.warnings:
                self.warnings[sign] = line
                self._monitor.warn(step, line)

    def _rank_cold(self, rows: tuple[Tensor, Tensor]) -> ColdItems | None:
        if self._cold is None:
            return None
        held_out, items = self._cold
        metrics = evaluate(
            *rows,
            torch.from_numpy(held_out.users),
            held_out.relevant,
            self._shard.seen(held_out.users),
            torch.from_numpy(self._shard.is_item & (self._shard.item_degree == 0)),
            [COLD_K],
            user_block=self._settings.evaluate.user_block,
            item_block=self._settings.evaluate.item_block,
            group=self._runtime.rows_group,
        )
        return ColdItems(metrics[f"recall@{COLD_K}"], COLD_K / items, COLD_K, items)


def cold_held_out(shard: Shard, validation: HeldOut, runtime: Runtime) -> tuple[HeldOut, int] | None:
    """Held-out interactions with items that have no training interaction, and the number of such items.

    None if there are too few to judge. Collective.
    """
    manifest, relevant = shard.manifest, validation.relevant
    items = sum(part.items - part.active_items for part in manifest.parts)
    # In a part, items with training interactions come first.
    active = torch.tensor([part.active_items for part in manifest.parts])
    cold = relevant.values % manifest.item_stride >= active[relevant.values // manifest.item_stride]
    users, list_of = relevant.row_ids()[cold].unique(return_inverse=True)
    count = torch.tensor(len(users))
    dist.all_reduce(count, group=runtime.control)
    if items < LEAST_ITEMS or count < LEAST_USERS:
        return None
    lists = CsrLists.from_pairs(list_of.numpy(), relevant.values[cold].numpy(), len(users))
    return HeldOut(validation.users[users.numpy()], lists), items


@torch.no_grad()
def inspect_fusion(items: np.ndarray, features: ItemFeatures, encoder: ItemEncoder, runtime: Runtime) -> Fusion:
    """Encodes a sample of the local item rows `items` [n] int64, of which there may be none. Collective."""
    device = runtime.device
    chosen = items[np.linspace(0, len(items) - 1, min(len(items), SAMPLE)).astype(np.int64)]
    inputs = {name: rows.to(device) for name, rows in features.gather(chosen).items()}
    points = encoder.points(inputs, torch.float32)
    missing = {name: mask.to(device) for name, mask in features.missing(chosen).items()}
    fused = encoder.fuse(points, torch.full((len(chosen),), 0.5, device=device), presence(points, missing))
    off_sphere = [~((rows.norm(dim=1) - 1).abs() <= TOLERANCE) for rows in points.values()]
    counts = torch.tensor([*(int(off.sum()) for off in off_sphere), len(chosen)], dtype=torch.float64, device=device)
    total = fused.double().sum(0)
    largest = torch.stack([_largest(rows) for rows in inputs.values()])
    if runtime.rows_group is not None:
        dist.all_reduce(counts, group=runtime.rows_group)
        dist.all_reduce(total, group=runtime.rows_group)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=runtime.rows_group)
    *off_counts, size = map(int, counts.tolist())
    # The squared length of a sum of unit rows is their number plus twice the sum of the cosines of all pairs.
    cosine = (float(total.square().sum()) - size) / max(1, size * (size - 1))
    return Fusion(
        items=size,
        off_sphere={name: count for name, count in zip(points, off_counts, strict=True) if count},
        largest=dict(zip(points, largest.tolist(), strict=True)),
        cosine=cosine,
    )


def _largest(rows: Tensor) -> Tensor:
    """The largest absolute value, float64 []; 0 without rows."""
    return rows.double().abs().max() if len(rows) else torch.zeros((), dtype=torch.float64, device=rows.device)
