"""Weights of the positives in the alignment term: equal, or those of the interactions (docs/model.md)."""

from __future__ import annotations

import math

import numpy as np
import torch

from cm3_dist.distributed.runtime import Runtime
from cm3_dist.graph.shard import Shard
from cm3_dist.pipeline.batch_sampler import Batch
from cm3_dist.pipeline.pair_weights import sum_while_planning


def positive_weights(batch: Batch, shard: Shard, size: int, runtime: Runtime) -> np.ndarray:
    """Weights [b] float32 of this rank's positives, which sum to 1 over all ranks.

    Collective on the planning group if the interactions have weights.

    Args:
        batch: this rank's share of the step.
        shard: this rank's.
        size: positives of the step over all ranks.
        runtime: the ranks.
    """
    if batch.weight is None:
        return np.full(len(batch.user), 1 / size, np.float32)
    weight = batch.weight.astype(np.float64)
    # One sum per part, so that the total is the same to the last bit for any number of ranks.
    sums = torch.zeros(shard.manifest.num_parts, dtype=torch.float64)
    own = np.bincount(batch.user // shard.manifest.user_stride, weight, minlength=len(shard.parts))
    sums[shard.parts.start : shard.parts.stop] = torch.from_numpy(own)
    if runtime.world_size > 1:
        sum_while_planning(sums, runtime)
    scaled: np.ndarray = (weight / math.fsum(sums.tolist())).astype(np.float32)
    return scaled
