"""Top-K lists of users of a finished run, block by block: the ranking of evaluation, with own ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.finished import FinishedRun
from cm3_dist.graph.exchange import send_to_owners
from cm3_dist.own_ids import OwnIds
from cm3_dist.ragged import Ragged
from cm3_dist.ranking import top_k

USERS_AT_A_TIME = 16_384  # on a rank; all item blocks travel once for each such block of users


@dataclass(frozen=True)
class Lists:
    """Some users' lists."""

    users: pa.Array  # [n] own ids
    items: pa.Array  # [sum of lengths] own ids, best first
    scores: np.ndarray  # [sum of lengths] float32
    lengths: np.ndarray  # [n] int64, at most k

    def table(self) -> pa.Table:
        """One row an entry: user, rank (from 1), item, score."""
        owner = np.repeat(np.arange(len(self.users)), self.lengths)
        starts = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        rank = (np.arange(len(owner)) - starts + 1).astype(np.int32)
        columns = [self.users.take(pa.array(owner)), pa.array(rank), self.items, pa.array(self.scores)]
        return pa.table(columns, names=["user", "rank", "item", "score"])


def user_lists(
    run: FinishedRun, users: np.ndarray, candidates: Tensor, k: int, *, seen: bool, held_out: bool
) -> Iterator[Lists]:
    """Lists of local user rows `users` [n] int64, ascending. Collective: all ranks yield equally often.

    Args:
        run: the model.
        users: whose; a rank may have none.
        candidates: [local items] bool: items that may be recommended.
        k: length of a list, less where there are fewer candidates.
        seen: leave out what the user has in training.
        held_out: leave out what the user has in validation and test.
    """
    rows, options = run.rows, run.settings.evaluate
    ids = OwnIds(run.shard.root, run.manifest, "user"), OwnIds(run.shard.root, run.manifest, "item")
    for begin in range(0, _most(run, len(users)), USERS_AT_A_TIME):
        some = users[begin : begin + USERS_AT_A_TIME]
        score, row = top_k(
            *rows,
            torch.from_numpy(some),
            left_out(run, some, seen, held_out),
            candidates,
            k,
            user_block=options.user_block,
            item_block=options.item_block,
            group=run.runtime.rows_group,
        )
        there = (row >= 0).cpu().numpy()
        yield Lists(
            ids[0].take(some + run.shard.first_user),
            ids[1].take(row.cpu().numpy()[there]),
            score.cpu().numpy()[there].astype(np.float32, copy=False),
            there.sum(axis=1),
        )


def left_out(run: FinishedRun, users: np.ndarray, seen: bool, held_out: bool) -> Ragged:
    """Global item rows that are not to be recommended to local user rows `users` [n], ascending."""
    sources = [run.shard.seen(users)] if seen else []
    if held_out:
        for split in run.shard.held_out.values():
            known = np.searchsorted(split.users, users).clip(max=max(len(split.users) - 1, 0))
            has = split.users[known] == users if len(split.users) else np.zeros(len(users), bool)
            own = split.relevant.rows(known[has])
            sources.append(
                Ragged.from_pairs(np.flatnonzero(has)[own.row_ids().numpy()], own.values.numpy(), len(users))
            )
    if len(sources) == 1:
        return sources[0]
    pairs = [(source.row_ids().numpy(), source.values.numpy()) for source in sources]
    empty = np.empty(0, np.int64)
    row = np.concatenate([empty, *(row for row, _ in pairs)])
    return Ragged.from_pairs(row, np.concatenate([empty, *(value for _, value in pairs)]), len(users))


def chosen_items(run: FinishedRun, rows: np.ndarray | None) -> Tensor:
    """[local items] bool: all items, or those of the global rows `rows` [n]. Collective."""
    if rows is None:
        return torch.from_numpy(run.shard.is_item)
    asked = send_to_owners(np.unique(rows), run.shard.item_rows, run.runtime.planning).table[:, 0]
    candidates = torch.zeros(run.shard.item_rows, dtype=torch.bool)
    candidates[torch.from_numpy(asked - run.shard.first_item)] = True
    return candidates


def trained_users(run: FinishedRun, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Local rows of the users at global `rows` [n], or of all: those with a training interaction, and the others."""
    shard = run.shard
    degree = shard.user_degree
    if rows is None:
        offset = np.arange(shard.user_rows) % run.manifest.user_stride
        sizes = np.repeat([run.manifest.parts[part].users for part in shard.parts], run.manifest.user_stride)
        own = np.flatnonzero(offset < sizes)
    else:
        own = np.unique(rows) - shard.first_user
        own = own[(own >= 0) & (own < shard.user_rows)]
    return own[degree[own] > 0], own[degree[own] == 0]


def _most(run: FinishedRun, count: int) -> int:
    """The largest `count` of any rank. Collective."""
    most = torch.tensor(count)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=run.runtime.control)
    return int(most)
