"""Do the curve's control points lie on the unit sphere, and fused rows apart? For a sample of every rank's items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from cm3_dist.training.trainer import Trainer

SAMPLE = 4096  # items a rank
TOLERANCE = 1e-3  # of a norm; float32 keeps it to 1e-6


@dataclass(frozen=True)
class Sphere:
    """Over all ranks: how many items were looked at, and per modality with items off the sphere how many these are."""

    items: int
    off: dict[str, int]
    largest: dict[str, float]  # largest absolute feature value, of every modality
    alike: float  # mean cosine of two items' fused rows


@torch.no_grad()
def look_at_sphere(trainer: Trainer) -> Sphere:
    """Encodes a sample of items. Collective."""
    runtime, own = trainer.runtime, np.flatnonzero(trainer.shard.is_item)
    chosen = own[np.linspace(0, len(own) - 1, min(len(own), SAMPLE)).astype(np.int64)]
    features = {name: rows.to(runtime.device) for name, rows in trainer.features.gather(chosen).items()}
    encoder = trainer.model.encoder
    points = encoder.points(features, torch.float32)
    fused = encoder.fuse(points, torch.full((len(chosen),), 0.5, device=runtime.device))
    off = [(~((rows.norm(dim=1) - 1).abs() <= TOLERANCE)).sum().double() for rows in points.values()]
    counts = torch.stack([*off, torch.tensor(float(len(chosen)), dtype=torch.float64, device=runtime.device)])
    total = fused.double().sum(0)
    largest = torch.stack([rows.double().abs().max() for rows in features.values()])
    if runtime.rows_group is not None:
        dist.all_reduce(counts, group=runtime.rows_group)
        dist.all_reduce(total, group=runtime.rows_group)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=runtime.rows_group)
    off_counts = {name: int(count) for name, count in zip(points, counts.tolist()[:-1], strict=True) if count}
    items = int(counts[-1])
    # The squared length of a sum of unit rows is that of each, and twice the cosine of every pair.
    alike = (float(total.square().sum()) - items) / max(1, items * (items - 1))
    return Sphere(items, off_counts, dict(zip(points, largest.tolist(), strict=True)), alike)
