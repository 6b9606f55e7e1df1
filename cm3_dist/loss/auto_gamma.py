"""`loss.gamma=auto`: gamma from the items' training degrees.

In the gradient of the loss, alignment pulls on the users with a total weight of 2, and on the items with the same. A
uniformity term pushes with a total weight of gamma/2 * 4t, distributed over its rows. Users are pulled and pushed in
proportion to their activity, so pull equals push at gamma = 1/t. (With this gamma the loss is also an upper bound of
InfoNCE at temperature 1 / 2t, divided by t.) Items are pulled in proportion to their degree g but all pushed equally,
so item i needs gamma = g_i / (mean g) / t. With too little push rows collapse, with too much they learn more slowly.
The rule takes the geometric mean of the degrees over all interactions:

    gamma = exp(sum_i g_i log g_i / sum_i g_i) / (mean g) / t                mean g over the items with interactions

With weights of interactions, g is the weighted degree: an item is pulled in proportion to it. Scaling all weights by
one factor changes nothing.

If items are not pushed equally, because there is no item term or its pairs are weighted by popularity, gamma = 1/t.
The rule was chosen on two data sets; docs/findings.md reports how well it works.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.graph.shard import Shard


def auto_gamma(settings: Settings, shard: Shard, runtime: Runtime) -> float:
    """Gamma by the rule above, the same on all ranks. Collective."""
    loss = settings.loss
    popular = settings.negatives == "in_batch" and loss.in_batch_correction == "none"
    if loss.item_uniformity == "none" or popular:
        return 1 / loss.t
    sums = degree_sums(shard)
    dist.all_reduce(sums, group=runtime.control)
    return typical_degree(sums) / loss.t


def degree_sums(shard: Shard) -> torch.Tensor:
    """Sums over the trained items of each part: g log g, g and 1. [parts, 3] float64; 0 for parts of other ranks.

    g is the weighted degree; without weights the degree.

    One row per part, so that the total is the same to the last bit for any number of ranks.
    """
    sums = torch.zeros(shard.manifest.num_parts, 3, dtype=torch.float64)
    for part, all_rows in zip(shard.parts, np.split(shard.item_weighted_degree, len(shard.parts)), strict=True):
        degree = all_rows[all_rows > 0]
        sums[part] = torch.tensor([(degree * np.log(degree)).sum(), degree.sum(), len(degree)], dtype=torch.float64)
    return sums


def typical_degree(sums: torch.Tensor) -> float:
    """The geometric mean over interactions of their items' degrees, divided by the items' mean degree.

    Args:
        sums: of all parts, as from `degree_sums`.
    """
    logs, interactions, items = sums.sum(0).tolist()
    return math.exp(logs / interactions) * items / interactions
