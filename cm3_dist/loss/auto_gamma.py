"""What the loss takes from the data at the start of a run: gamma, if it is `auto`, and how far phi is trusted.

**gamma = auto.** In the gradient of the loss the pulls of alignment on the users weigh 2 in all, those on the items
too; the pushes of a uniformity term weigh gamma/2 * 4t, shared out among its rows. Pull and push are equal at
gamma = 1/t for rows that are pushed as often as they are pulled, as users are, both by their activity. (With that
gamma the loss is also an upper bound of InfoNCE at temperature 1 / 2t, divided by t.) Items are pulled by their
degree g and pushed all alike, so that item i needs gamma = g_i / (mean g) / t. Too little push and rows collapse, too
much and they learn more slowly, so the items decide. The degree that counts is that of the items which interactions
are made of, their geometric mean:

    gamma = exp(sum_i g_i log g_i / sum_i g_i) / (mean g) / t                mean g over the items with interactions

Where no item is pushed alike, because there is no item term or its pairs go by popularity, gamma = 1/t. The rule was
chosen on two data sets; docs/findings.md says what it is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.graph.shard import Shard
from cm3_dist.loss.calibration import trust


@dataclass(frozen=True)
class Given:
    """Numbers that are fixed for the whole run, the same on all ranks and on any number of them."""

    gamma: float
    reliability: float = 1.0  # what phi is multiplied by

    @staticmethod
    def by(settings: Settings, shard: Shard, runtime: Runtime) -> Given:
        """From the settings and the data. Collective.

        Raises:
            InputError: the prepared folder lacks what a setting asks for.
        """
        gamma = settings.loss.gamma
        reliability = agree_on_error(runtime, lambda: trust(settings.loss, shard.manifest))
        return Given(_balance(settings, shard, runtime) if gamma == "auto" else gamma, reliability)


def _balance(settings: Settings, shard: Shard, runtime: Runtime) -> float:
    """The rule above."""
    loss = settings.loss
    popular = settings.negatives == "in_batch" and loss.in_batch_correction == "none"
    if loss.item_uniformity == "none" or popular:
        return 1 / loss.t
    sums = degree_sums(shard)
    dist.all_reduce(sums, group=runtime.control)
    return typical_degree(sums) / loss.t


def degree_sums(shard: Shard) -> torch.Tensor:
    """[parts, 3] sums of g log g, of g and of 1 over a part's trained items; zeros for the parts of other ranks.

    A row a part, so that added up they come to the same number, to the last bit, however many ranks there are.
    """
    sums = torch.zeros(shard.manifest.num_parts, 3, dtype=torch.float64)
    for part, all_rows in zip(shard.parts, np.split(shard.item_degree, len(shard.parts)), strict=True):
        degree = all_rows[all_rows > 0].astype(np.float64)
        sums[part] = torch.tensor([(degree * np.log(degree)).sum(), degree.sum(), len(degree)], dtype=torch.float64)
    return sums


def typical_degree(sums: torch.Tensor) -> float:
    """From the sums of all parts: the interactions' geometric mean of their items' degrees, over the items' mean."""
    logs, interactions, items = sums.sum(0).tolist()
    return math.exp(logs / interactions) * items / interactions
