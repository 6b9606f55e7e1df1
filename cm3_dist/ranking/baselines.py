"""Rankings without a model: by training popularity and at random."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cm3_dist.distributed.seeding import Stream, generator
from cm3_dist.graph.shard import Shard

RANDOM_WIDTH = 8  # of the random rows


def baseline_rows(shard: Shard, seed: int, device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """User and item rows whose inner product is the score of a baseline.

    Args:
        shard: this rank's.
        seed: of the run; random rows are keyed by (seed, part), so they do not depend on the number of ranks.
        device: of the rows.

    Returns:
        "popularity" (training degree of the item) and "random" -> [local users, w] and [local items, w] float32.
    """
    degree = torch.from_numpy(shard.item_degree).float().unsqueeze(1).to(device)
    everyone = torch.ones(shard.user_rows, 1, device=device)
    manifest = shard.manifest
    users = _random(shard, seed, 0, manifest.user_stride)
    items = _random(shard, seed, 1, manifest.item_stride)
    return {"popularity": (everyone, degree), "random": (users.to(device), items.to(device))}


def _random(shard: Shard, seed: int, kind: int, stride: int) -> Tensor:
    draws = (generator(Stream.BASELINE, seed, part, kind) for part in shard.parts)
    return torch.from_numpy(np.concatenate([rng.standard_normal((stride, RANDOM_WIDTH), np.float32) for rng in draws]))
