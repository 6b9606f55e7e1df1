"""Which items are ranked for which users, and the lists and metrics of a ranking.

Shapes: n users of this rank who have held-out items, K the largest cut-off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.errors import InputError
from cm3_dist.graph.csr_lists import CsrLists
from cm3_dist.inference.top_k_lists import candidate_mask
from cm3_dist.inference.trained_model import TrainedModel
from cm3_dist.ranking.full_ranking import top_k
from cm3_dist.ranking.metrics import ranking_metrics


@dataclass(frozen=True)
class Task:
    """This rank's users with held-out items, and all items that are ranked for them."""

    users: np.ndarray  # [n] int64 local rows, ascending
    relevant: CsrLists  # n lists of held-out items, global rows; none is empty
    seen: CsrLists  # n lists of training items, which are not ranked
    candidates: Tensor  # [local items] bool
    item_degree: np.ndarray  # [all item rows] int64 training interactions; 0 for padding
    is_candidate: np.ndarray  # [all item rows] bool
    ks: Sequence[int]


@dataclass(frozen=True)
class Ranked:
    """One ranking of a task."""

    lists: Tensor  # [n, K] int64 global item rows, best first; -1 where a list is shorter
    metrics: dict[str, Tensor]  # "recall@20" and so on -> [n] float64

    def means(self, model: TrainedModel, chosen: np.ndarray | None = None) -> tuple[dict[str, float], int]:
        """Means over the users of all ranks, or over those `chosen` [n] bool, and their number. Collective."""
        keep = torch.ones(len(self.lists), dtype=torch.bool) if chosen is None else torch.from_numpy(chosen)
        sums = torch.stack([*(values[keep].sum() for values in self.metrics.values()), keep.sum().double()])
        dist.all_reduce(sums, group=model.runtime.control)
        *totals, count = sums.tolist()
        return {name: total / max(count, 1) for name, total in zip(self.metrics, totals, strict=True)}, int(count)


def evaluation_task(model: TrainedModel, split: str, cold: bool) -> Task:
    """The evaluation protocol of training. Collective.

    Args:
        model: the model.
        split: "validation" or "test".
        cold: rank only held-out items without a training interaction, for the users who have such. Data prepared with
            cold items is ranked like this in any case.

    Raises:
        InputError: no user has an item to rank.
    """
    shard = model.shard
    held_out = model.evaluator.held_out(split)
    degree = _gather_items(model, shard.item_degree)
    users, relevant = held_out.users, held_out.relevant
    only_cold = cold and model.manifest.split != "cold_items"
    if only_cold:
        row, item = relevant.row_ids().numpy(), relevant.values.numpy()
        untrained = degree[item] == 0
        kept, row = np.unique(row[untrained], return_inverse=True)
        users, relevant = users[kept], CsrLists.from_pairs(row, item[untrained], len(kept))
        candidates = candidate_mask(model, relevant.values.numpy())
    else:
        candidates = model.evaluator.candidates(split)
    total = torch.tensor(len(users))
    dist.all_reduce(total, group=model.runtime.control)
    if not total:
        kind = " with an item that has no training interaction" if only_cold else ""
        other = "test" if split == "validation" else "validation"
        remedy = f"use --split {other}" if getattr(model.manifest, other) else "prepare with another --split"
        message = f"{shard.root}: no user has a held-out {split} interaction{kind}"
        raise InputError(message if only_cold else f"{message}; {remedy}", "evaluation.empty")
    is_candidate = _gather_items(model, candidates.numpy().astype(np.int64)) > 0
    return Task(users, relevant, shard.seen(users), candidates, degree, is_candidate, model.settings.evaluate.ks)


def rank_by_rows(model: TrainedModel, task: Task, rows: tuple[Tensor, Tensor]) -> Ranked:
    """Ranks by the inner product of this rank's user and item rows [., width]. Collective."""
    options = model.settings.evaluate
    _, lists = top_k(
        *rows,
        torch.from_numpy(task.users),
        task.seen,
        task.candidates,
        max(task.ks),
        user_block=options.user_block,
        item_block=options.item_block,
        group=model.runtime.rows_group,
    )
    return with_metrics(lists.cpu(), task)


def with_metrics(lists: Tensor, task: Task) -> Ranked:
    """Adds metrics to lists [n, K]."""
    return Ranked(lists, ranking_metrics(lists, task.relevant, task.ks))


def _gather_items(model: TrainedModel, own: np.ndarray) -> np.ndarray:
    """[local item rows] int64 of every rank -> [all item rows]. Collective."""
    if model.runtime.world_size == 1:
        return own
    parts = [torch.empty(len(own), dtype=torch.int64) for _ in range(model.runtime.world_size)]
    dist.all_gather(parts, torch.from_numpy(own.astype(np.int64)), group=model.runtime.control)
    return torch.cat(parts).numpy()
