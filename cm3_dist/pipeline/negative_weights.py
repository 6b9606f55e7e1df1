"""Importance weights of negative items: pairs count as if items were drawn uniformly (docs/model.md).

The weight of a pair is the product of the weights of its items. For in-batch negatives this takes the probability that
both are in the batch as the product of their own: accurate if the batch is small against the training set.
"""

from __future__ import annotations

import numpy as np

from cm3_dist.config.settings import Settings
from cm3_dist.graph.shard import Shard
from cm3_dist.pipeline.pair_weights import copies_of_one_row


def negative_weights(
    settings: Settings, shard: Shard, items: np.ndarray, count: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the distinct negatives of a step.

    Args:
        settings: `negatives` and `loss.in_batch_correction`.
        shard: this rank's.
        items: [n] int64 local item rows, distinct.
        count: [n] int64, how often each was drawn over all ranks.
        size: positives of the step over all ranks.

    Returns:
        w [n]: a pair (i, j) has weight w_i w_j; v [n]: total weight of the pairs among the copies of one row.
    """
    negatives, correction = settings.negatives, settings.loss.in_batch_correction
    if negatives == "local":
        # Part p draws n_p negatives from its m_p items, so a draw counts m_p / n_p times.
        parts = [shard.manifest.parts[part] for part in shard.parts]
        rate = np.array([part.active_items / max(part.train, 1) for part in parts])
        rate = rate[items // shard.manifest.item_stride]
        return count * rate, copies_of_one_row(count) * rate**2
    if negatives == "uniform" or correction == "none":
        return count, copies_of_one_row(count)
    degree = shard.item_degree[items]
    if correction == "inverse_degree":
        return count / degree, copies_of_one_row(count) / degree.astype(np.float64) ** 2
    # Horvitz-Thompson: an item is in the batch unless none of its `degree` interactions is, each of which is drawn with
    # probability size/train.
    included = -np.expm1(degree * np.log1p(-min(size / shard.manifest.train, 1 - 1e-9)))
    return np.divide(count > 0, included, where=count > 0, out=np.zeros(len(items))), np.zeros(len(items))
