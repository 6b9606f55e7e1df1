"""What is ranked for whom, and the lists that a ranking of it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.errors import InputError
from cm3_dist.graph.csr_lists import Ragged
from cm3_dist.inference.top_k_lists import chosen_items
from cm3_dist.inference.trained_model import FinishedRun
from cm3_dist.ranking.full_ranking import top_k
from cm3_dist.ranking.metrics import ranking_metrics


@dataclass(frozen=True)
class Task:
    """This rank's users with held-out items, and all items that are ranked for them."""

    users: np.ndarray  # [n] int64 local rows, ascending
    relevant: Ragged  # n lists of global item rows, none empty
    seen: Ragged  # n lists of training items, which are not ranked
    candidates: Tensor  # [local items] bool
    item_degree: np.ndarray  # [all item rows] int64 training interactions; padding is 0
    is_candidate: np.ndarray  # [all item rows] bool
    ks: Sequence[int]


@dataclass(frozen=True)
class Ranked:
    """One ranking of a task."""

    lists: Tensor  # [n, max K] int64 global item rows, best first, -1 where a list is shorter
    metrics: dict[str, Tensor]  # "recall@20" and so on -> [n] float64

    def means(self, run: FinishedRun, chosen: np.ndarray | None = None) -> tuple[dict[str, float], int]:
        """Means over the users of all ranks, or those `chosen` [n] bool, and how many they are. Collective."""
        keep = torch.ones(len(self.lists), dtype=torch.bool) if chosen is None else torch.from_numpy(chosen)
        sums = torch.stack([*(values[keep].sum() for values in self.metrics.values()), keep.sum().double()])
        dist.all_reduce(sums, group=run.runtime.control)
        *totals, count = sums.tolist()
        return {name: total / max(count, 1) for name, total in zip(self.metrics, totals, strict=True)}, int(count)


def task(run: FinishedRun, split: str, cold: bool) -> Task:
    """The protocol of training on "validation" or "test". Collective.

    Args:
        run: the model.
        split: which held-out interactions.
        cold: rank only the split's held-out items that have no training interaction, for the users who have such. A
            data set prepared with cold items is ranked so in any case.

    Raises:
        InputError: there is nothing to rank.
    """
    trainer, shard = run.trainer, run.shard
    held_out = trainer.evaluator.held_out(split)
    degree = _all_rows(run, shard.item_degree)
    users, relevant = held_out.users, held_out.relevant
    if cold and run.manifest.split != "cold_items":
        row, item = relevant.row_ids().numpy(), relevant.values.numpy()
        keep = degree[item] == 0
        kept, row = np.unique(row[keep], return_inverse=True)
        users, relevant = users[kept], Ragged.from_pairs(row, item[keep], len(kept))
        candidates = chosen_items(run, relevant.values.numpy())
    else:
        candidates = trainer.evaluator.candidates(split)
    total = torch.tensor(len(users))
    dist.all_reduce(total, group=run.runtime.control)
    if not total:
        what = f"held-out {split} interaction" + " with an item that has no training interaction" * cold
        raise InputError(f"{shard.root}: no user has a {what}")
    is_candidate = _all_rows(run, candidates.numpy().astype(np.int64)) > 0
    return Task(users, relevant, shard.seen(users), candidates, degree, is_candidate, run.settings.evaluate.ks)


def rank(run: FinishedRun, task: Task, rows: tuple[Tensor, Tensor]) -> Ranked:
    """Ranks by the inner product of user and item rows [., width] of this rank. Collective."""
    options = run.settings.evaluate
    _, ranked = top_k(
        *rows,
        torch.from_numpy(task.users),
        task.seen,
        task.candidates,
        max(task.ks),
        user_block=options.user_block,
        item_block=options.item_block,
        group=run.runtime.rows_group,
    )
    return judged(ranked.cpu(), task)


def judged(lists: Tensor, task: Task) -> Ranked:
    """Lists [n, max K] with their metrics."""
    return Ranked(lists, ranking_metrics(lists, task.relevant, task.ks))


def _all_rows(run: FinishedRun, own: np.ndarray) -> np.ndarray:
    """[local item rows] int64 of every rank -> [item rows]. Collective."""
    if run.runtime.world_size == 1:
        return own
    parts = [torch.empty(len(own), dtype=torch.int64) for _ in range(run.runtime.world_size)]
    dist.all_gather(parts, torch.from_numpy(own.astype(np.int64)), group=run.runtime.control)
    return torch.cat(parts).numpy()
