"""Top-K lists of users of a finished run, block by block: the ranking of evaluation, with own ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.graph.csr_lists import Ragged
from cm3_dist.graph.halo_exchange import send_to_owners
from cm3_dist.inference.cold_start import NewItems, place_users
from cm3_dist.inference.cold_start_inputs import NewUsers
from cm3_dist.inference.id_map import OwnIds
from cm3_dist.inference.trained_model import FinishedRun
from cm3_dist.ranking.full_ranking import top_k

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


@dataclass(frozen=True)
class Catalogue:
    """What may be recommended."""

    known: Tensor  # [local items] bool
    new: NewItems | None = None


def user_lists(
    run: FinishedRun, users: np.ndarray, catalogue: Catalogue, k: int, *, seen: bool, held_out: bool
) -> Iterator[Lists]:
    """Lists of local user rows `users` [n] int64, ascending. Collective: all ranks yield equally often.

    Args:
        run: the model.
        users: whose; a rank may have none.
        catalogue: items that may be recommended.
        k: length of a list, less where there are fewer candidates.
        seen: leave out what the user has in training.
        held_out: leave out what the user has in validation and test.
    """
    ids = OwnIds(run.shard.root, run.manifest, "user")
    for begin in range(0, _most(run, len(users)), USERS_AT_A_TIME):
        some = users[begin : begin + USERS_AT_A_TIME]
        known = left_out(run, some, seen, held_out)
        names = ids.take(some + run.shard.first_user)
        yield _lists(run, names, run.rows[0], some, known, _nothing(len(some)), catalogue, k)


def new_user_lists(run: FinishedRun, users: NewUsers, catalogue: Catalogue, k: int, *, seen: bool) -> Iterator[Lists]:
    """Lists of users that training never saw, dealt to the ranks block by block. Collective.

    Args:
        run: the model.
        users: all of them, on every rank.
        catalogue: items that may be recommended; the new items are those that the users' lists mean.
        k: length of a list.
        seen: leave out the items of the user's list.
    """
    known, rank, ranks = run.manifest.item_rows, run.runtime.rank, run.runtime.world_size
    for begin in range(0, len(users.ids), USERS_AT_A_TIME):
        end = min(begin + USERS_AT_A_TIME, len(users.ids))
        inside = (users.owner >= begin) & (users.owner < end)
        owner, item = users.owner[inside] - begin, users.item[inside]
        rows = place_users(run, owner, item, end - begin, catalogue.new)
        share = -(-(end - begin) // ranks)
        own = np.arange(min(rank * share, end - begin), min((rank + 1) * share, end - begin))
        old, new = (
            Ragged.from_pairs(owner[part], item[part] - shift, end - begin).rows(own) if seen else _nothing(len(own))
            for part, shift in ((item < known, 0), (item >= known, known))
        )
        yield _lists(run, users.ids.take(pa.array(own + begin)), rows, own, old, new, catalogue, k)


def _lists(
    run: FinishedRun,
    names: pa.Array,
    rows: Tensor,
    users: np.ndarray,
    without: Ragged,
    without_new: Ragged,
    catalogue: Catalogue,
    k: int,
) -> Lists:
    """Lists of the rows `users` of `rows`; `without`: what each does not get, of the catalogue and of the new items."""
    options = run.settings.evaluate
    blocks = {"user_block": options.user_block, "item_block": options.item_block}
    group, wanted = run.runtime.rows_group, torch.from_numpy(users)
    score, row = top_k(rows, run.rows[1], wanted, without, catalogue.known, k, group=group, **blocks)
    if new := catalogue.new:
        more, place = top_k(rows, new.rows, wanted, without_new, new.candidates, k, group=group, **blocks)
        score = torch.cat([score, more], 1)
        row = torch.cat([row, torch.where(place >= 0, place + run.manifest.item_rows, -1)], 1)
        order = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
        score, row = score.gather(1, order), row.gather(1, order)
    found = row.cpu().numpy()
    there = found >= 0
    scores = score.cpu().numpy()[there].astype(np.float32, copy=False)
    return Lists(names, _item_ids(run, found[there], catalogue.new), scores, there.sum(axis=1))


def _item_ids(run: FinishedRun, rows: np.ndarray, new: NewItems | None) -> pa.Array:
    """Own ids of global rows; from `manifest.item_rows` on they are positions among the new items."""
    ids, known = OwnIds(run.shard.root, run.manifest, "item"), rows < run.manifest.item_rows
    if new is None:
        return ids.take(rows)
    both = [ids.take(rows[known]), new.ids.take(pa.array(rows[~known] - run.manifest.item_rows))]
    place = np.empty(len(rows), np.int64)
    place[known], place[~known] = np.arange(known.sum()), known.sum() + np.arange((~known).sum())
    return pa.concat_arrays(both).take(pa.array(place))


def _nothing(users: int) -> Ragged:
    return Ragged.from_numpy(np.zeros(users + 1, np.int64), np.empty(0, np.int64))


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
    asked = send_to_owners(np.unique(rows), run.shard.item_rows, run.runtime.control).table[:, 0]
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
