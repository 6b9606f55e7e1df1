"""Accuracy by item popularity and by user activity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cm3_dist.evaluation.protocol import Ranked, Task
from cm3_dist.inference.trained_model import TrainedModel
from cm3_dist.ranking.metrics import hits

GROUPS = 5


@dataclass(frozen=True)
class Group:
    """Items or users whose number of training interactions is in [low, high]."""

    low: int
    high: int

    def contains(self, degree: np.ndarray) -> np.ndarray:
        """[n] int64 -> [n] bool."""
        return (degree >= self.low) & (degree <= self.high)

    @property
    def label(self) -> str:
        """For a table."""
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


def groups(histogram: np.ndarray) -> list[Group]:
    """Up to GROUPS groups of about equal size, cut where the degree changes, and one for degree 0.

    `histogram` [d + 1] int64: number of nodes per number of training interactions.
    """
    found = [Group(0, 0)] if histogram[0] else []
    trained = histogram.copy()
    trained[0] = 0
    below, total, low = trained.cumsum(), int(trained.sum()), 1
    for number in range(1, GROUPS + 1):
        high = int(np.searchsorted(below, total * number / GROUPS))
        if high >= low and total:
            found.append(Group(low, high))
            low = high + 1
    return found


def by_popularity(model: TrainedModel, task: Task, ranked: Ranked) -> list[dict[str, Any]]:
    """Per group of candidates: recall of its held-out items at each K, mean over the users who have any. Collective.

    In addition, the group's share of the candidates, of the held-out interactions and of the list entries at the
    largest K. A fair ranking gives a group its share of the held-out interactions.
    """
    relevant = task.relevant
    owner, item = relevant.row_ids().numpy(), relevant.values.numpy()
    degree = task.item_degree
    found = []
    hit = hits(ranked.lists, relevant)
    shown = ranked.lists.numpy()
    shown_degree = np.where(shown >= 0, degree[shown], -1)
    for group in groups(np.bincount(degree[task.is_candidate])):
        wanted = np.bincount(owner[group.contains(degree[item])], minlength=len(task.users))
        inside = torch.from_numpy(group.contains(shown_degree)) & hit
        has = wanted > 0
        recalls = [inside[:, :k].sum(1).numpy()[has] / wanted[has] for k in task.ks]
        entries = int(group.contains(shown_degree).sum()), int((shown >= 0).sum())
        sums = [float(recall.sum()) for recall in recalls]
        sums += [float(has.sum()), float(wanted.sum()), float(len(item)), *map(float, entries)]
        values = torch.tensor(sums, dtype=torch.float64)
        dist.all_reduce(values, group=model.runtime.control)
        *recall, users, held_out, all_held_out, own_entries, all_entries = values.tolist()
        items = int((group.contains(degree) & task.is_candidate).sum())
        found.append(
            {
                "training_interactions": [group.low, group.high],
                "items": items,
                "users": int(users),
                "share_of_items": items / int(task.is_candidate.sum()),
                "share_of_held_out": held_out / all_held_out,
                "share_of_lists": own_entries / max(all_entries, 1),
                **{f"recall@{k}": total / users if users else None for k, total in zip(task.ks, recall, strict=True)},
            }
        )
    return found


def by_activity(model: TrainedModel, task: Task, ranked: Ranked) -> list[dict[str, Any]]:
    """Per group of users, by their number of training interactions: all metrics. Collective."""
    degree = model.shard.user_degree[task.users]
    most = torch.tensor(int(degree.max(initial=0)))
    dist.all_reduce(most, dist.ReduceOp.MAX, group=model.runtime.control)
    histogram = torch.from_numpy(np.bincount(degree, minlength=int(most) + 1))
    dist.all_reduce(histogram, group=model.runtime.control)
    found = []
    for group in groups(histogram.numpy()):
        metrics, users = ranked.means(model, group.contains(degree))
        found.append({"training_interactions": [group.low, group.high], "users": users, **metrics})
    return found
