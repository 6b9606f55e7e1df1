"""Compares two rankings of the same users with a paired bootstrap over users."""

from __future__ import annotations

import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from cm3_dist.distributed.seeding import Stream, generator
from cm3_dist.evaluation.protocol import Ranked
from cm3_dist.inference.trained_model import TrainedModel

RESAMPLES = 1000


def paired_bootstrap(
    model: TrainedModel, ours: Ranked, theirs: Ranked, resamples: int = RESAMPLES, level: float = 0.95
) -> dict[str, dict[str, float]]:
    """Difference of the means, `ours` minus `theirs`, of each metric. Collective; only rank 0 gets the result.

    Users are drawn with replacement, as many as there are; both rankings are averaged over the same draw. Source:
    Sakai, "Evaluating evaluation metrics based on the bootstrap", 2006; the interval is the percentile interval.

    Args:
        model: for its ranks and seed.
        ours: per-user metrics of one ranking.
        theirs: of the other, of the same users in the same order.
        resamples: number of draws.
        level: coverage of the interval.

    Returns:
        Metric -> `difference`, `low` and `high` of its interval, and the two-sided `p`: twice the smaller share of
        draws on one side of zero, at least 1 / resamples.
    """
    names = list(ours.metrics)
    own = np.stack([(ours.metrics[name] - theirs.metrics[name]).numpy() for name in names], axis=1)
    gathered: list[np.ndarray | None] | None = [None] * model.runtime.world_size if model.runtime.rank == 0 else None
    dist.gather_object(own, gathered, dst=0, group=model.runtime.control)
    if gathered is None:
        return {}
    difference = np.concatenate([part for part in gathered if part is not None])
    rng = generator(Stream.EVALUATION, model.settings.train.seed, resamples)
    means = np.empty((resamples, len(names)))
    for number in tqdm(range(resamples), desc="bootstrap", unit="draw", disable=None, leave=False):
        count = np.bincount(rng.integers(0, len(difference), len(difference)), minlength=len(difference))
        means[number] = count @ difference / len(difference)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    one_side = np.minimum((means <= 0).mean(axis=0), (means >= 0).mean(axis=0))
    return {
        name: {
            "difference": float(difference[:, column].mean()),
            "low": float(low[column]),
            "high": float(high[column]),
            "p": float(min(1.0, max(2 * one_side[column], 1 / resamples))),
        }
        for column, name in enumerate(names)
    }
