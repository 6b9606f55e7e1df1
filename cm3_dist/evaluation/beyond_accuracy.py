"""Figures beyond accuracy: how much of the catalogue is recommended, its novelty, and popularity bias."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from cm3_dist.evaluation.protocol import Ranked, Task
from cm3_dist.inference.trained_model import TrainedModel

NAMES = ("coverage", "gini", "novelty", "popularity", "popularity_lift")


def exposure(model: TrainedModel, task: Task, ranked: Ranked) -> dict[str, float]:
    """Figures of the lists at each cut-off K. Collective.

    coverage@K         share of the candidates that occur in at least one list
    gini@K             inequality of the candidates' numbers of list entries: 0 if equal, 1 if one item has all
    novelty@K          mean over list entries of -log2(max(training interactions, 1) / users), in bits
    popularity@K       mean over users of the mean number of training interactions of their list
    popularity_lift@K  popularity@K divided by the same mean over the users' training items, minus 1: 0 if lists are as
                       popular as the items that users choose themselves (Abdollahpouri et al., 2019)
    """
    degree = task.item_degree
    own = [float(degree[items].mean()) for items in _seen_items(task) if len(items)]
    profile, count = _sums(model, sum(own), len(own))
    found = {}
    for k in task.ks:
        lists = ranked.lists[:, :k].numpy()
        valid = lists >= 0
        entries = torch.from_numpy(np.bincount(lists[valid], minlength=len(degree)))
        dist.all_reduce(entries, group=model.runtime.control)
        shown = np.sort(entries.numpy()[task.is_candidate])
        bits = -np.log2(np.maximum(degree[lists[valid]], 1) / model.manifest.users)
        lengths = valid.sum(1)
        popularity = np.where(valid, degree[lists], 0).sum(1) / np.maximum(lengths, 1)
        novelty, all_entries, mean, users = _sums(
            model, float(bits.sum()), valid.sum(), float(popularity[lengths > 0].sum()), (lengths > 0).sum()
        )
        mean /= max(users, 1)
        found[f"coverage@{k}"] = float((shown > 0).mean())
        found[f"gini@{k}"] = _gini(shown)
        found[f"novelty@{k}"] = novelty / max(all_entries, 1)
        found[f"popularity@{k}"] = mean
        found[f"popularity_lift@{k}"] = mean / (profile / count) - 1 if profile else 0.0
    return found


def _seen_items(task: Task) -> list[np.ndarray]:
    return np.split(task.seen.values.numpy(), task.seen.indptr.numpy()[1:-1]) if len(task.users) else []


def _sums(model: TrainedModel, *values: float) -> list[float]:
    """Over all ranks. Collective."""
    summed = torch.tensor([float(value) for value in values], dtype=torch.float64)
    dist.all_reduce(summed, group=model.runtime.control)
    found: list[float] = summed.tolist()
    return found


def _gini(ascending: np.ndarray) -> float:
    total, count = float(ascending.sum()), len(ascending)
    if not total:
        return 0.0
    return float(2 * np.dot(np.arange(1, count + 1), ascending) / (count * total) - (count + 1) / count)
