"""Top-K lists of users with external ids, in blocks of users, ranked as in evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.graph.csr_lists import CsrLists
from cm3_dist.graph.halo_exchange import send_to_owners
from cm3_dist.graph.shard import HeldOut
from cm3_dist.inference.cold_start import NewItems, place_users
from cm3_dist.inference.cold_start_inputs import NewUsers
from cm3_dist.inference.trained_model import TrainedModel
from cm3_dist.ranking.full_ranking import top_k

USERS_PER_BLOCK = 16_384  # per rank; all item blocks are broadcast once per block of users


@dataclass(frozen=True)
class TopKLists:
    """The lists of some users, one after the other."""

    users: pa.Array  # [n] external ids
    items: pa.Array  # [sum of lengths] external ids, best first
    scores: np.ndarray  # [sum of lengths] float32
    lengths: np.ndarray  # [n] int64, at most k

    def table(self, schema: pa.Schema) -> pa.Table:
        """One row per list entry: user, rank (from 1), item, score; see `table_schema`."""
        owner = np.repeat(np.arange(len(self.users)), self.lengths)
        starts = np.repeat(np.cumsum(self.lengths) - self.lengths, self.lengths)
        rank = (np.arange(len(owner)) - starts + 1).astype(np.int32)
        columns = [self.users.take(pa.array(owner)), pa.array(rank), self.items, pa.array(self.scores)]
        return pa.table(columns, names=schema.names).cast(schema)


@dataclass(frozen=True)
class Catalogue:
    """The items that may be recommended."""

    known: Tensor  # [local items] bool
    new: NewItems | None = None

    @property
    def new_ids(self) -> pa.Array | None:
        """External ids of the new items, if there are any."""
        return None if self.new is None else self.new.ids


def table_schema(model: TrainedModel) -> pa.Schema:
    """Columns of lists as a table."""
    types = {"user": model.user_ids.stored_type, "rank": pa.int32(), "item": model.item_ids.stored_type}
    return pa.schema({**types, "score": pa.float32()})


def user_lists(
    model: TrainedModel, users: np.ndarray, catalogue: Catalogue, k: int, *, exclude_seen: bool, exclude_held_out: bool
) -> Iterator[TopKLists]:
    """Lists of trained users. Collective: all ranks yield equally often.

    Args:
        model: the model.
        users: [n] int64 local user rows, ascending; a rank may have none.
        catalogue: items that may be recommended.
        k: length of a list; lists are shorter where there are fewer candidates.
        exclude_seen: leave out a user's training items.
        exclude_held_out: leave out a user's validation and test items.
    """
    most = torch.tensor(len(users))
    dist.all_reduce(most, dist.ReduceOp.MAX, group=model.runtime.control)
    for begin in range(0, int(most), USERS_PER_BLOCK):
        block = users[begin : begin + USERS_PER_BLOCK]
        ids = model.user_ids.take(block + model.shard.first_user)
        excluded = _excluded_items(model, block, exclude_seen, exclude_held_out)
        yield _lists(model, ids, model.rows[0], block, catalogue, k, excluded, excluded_new=_empty_lists(len(block)))


def new_user_lists(
    model: TrainedModel, users: NewUsers, catalogue: Catalogue, k: int, *, exclude_seen: bool
) -> Iterator[TopKLists]:
    """Lists of users that training never saw, in their order; each rank has an equal share. Collective.

    Args:
        model: the model.
        users: all of them, on every rank.
        catalogue: items that may be recommended; its new items are those that the users' lists refer to.
        k: length of a list.
        exclude_seen: leave out the items of the user's own list.
    """
    known, rank, ranks = model.manifest.item_rows, model.runtime.rank, model.runtime.world_size
    share = -(-len(users.ids) // ranks)  # each rank has consecutive users, a few of which are in each block
    step = -(-USERS_PER_BLOCK // ranks)
    for begin in range(0, share, step):
        ends = [min(first + begin + step, first + share, len(users.ids)) for first in range(0, ranks * share, share)]
        block = np.concatenate([np.arange(r * share + begin, end) for r, end in enumerate(ends)])
        inside = np.isin(users.owner, block)
        owner, item = np.searchsorted(block, users.owner[inside]), users.item[inside]
        rows = place_users(model, owner, item, len(block), catalogue.new)
        own = np.flatnonzero(block // share == rank)
        excluded = excluded_new = _empty_lists(len(own))
        if exclude_seen:
            is_new = item >= known
            excluded = CsrLists.from_pairs(owner[~is_new], item[~is_new], len(block)).rows(own)
            excluded_new = CsrLists.from_pairs(owner[is_new], item[is_new] - known, len(block)).rows(own)
        ids = users.ids.take(pa.array(block[own]))
        yield _lists(model, ids, rows, own, catalogue, k, excluded, excluded_new)


def _lists(
    model: TrainedModel,
    ids: pa.Array,
    user_rows: Tensor,
    users: np.ndarray,
    catalogue: Catalogue,
    k: int,
    excluded: CsrLists,
    excluded_new: CsrLists,
) -> TopKLists:
    """Ranks known and new items for the rows `users` of `user_rows`. Collective.

    `excluded`: per user, global rows of known items that are left out; `excluded_new`: positions of new items.
    """
    options = model.settings.evaluate
    blocks = {"user_block": options.user_block, "item_block": options.item_block}
    group, wanted = model.runtime.rows_group, torch.from_numpy(users)
    score, row = top_k(user_rows, model.rows[1], wanted, excluded, catalogue.known, k, group=group, **blocks)
    if new := catalogue.new:
        more, position = top_k(user_rows, new.rows, wanted, excluded_new, new.candidates, k, group=group, **blocks)
        score = torch.cat([score, more], 1)
        row = torch.cat([row, torch.where(position >= 0, position + model.manifest.item_rows, -1)], 1)
        order = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
        score, row = score.gather(1, order), row.gather(1, order)
    found = row.cpu().numpy()
    valid = found >= 0
    scores = score.cpu().numpy()[valid].astype(np.float32, copy=False)
    return TopKLists(ids, _item_ids(model, found[valid], catalogue.new), scores, valid.sum(axis=1))


def _item_ids(model: TrainedModel, rows: np.ndarray, new: NewItems | None) -> pa.Array:
    """External ids of global rows [n]; rows from `manifest.item_rows` on are positions of new items."""
    if new is None:
        return model.item_ids.take(rows)
    is_new = rows >= model.manifest.item_rows
    known = model.item_ids.take(rows[~is_new])
    both = pa.concat_arrays([known, new.ids.take(pa.array(rows[is_new] - model.manifest.item_rows))])
    position = np.empty(len(rows), np.int64)
    position[~is_new], position[is_new] = np.arange(len(known)), np.arange(len(known), len(rows))
    return both.take(pa.array(position))


def _empty_lists(users: int) -> CsrLists:
    return CsrLists.from_numpy(np.zeros(users + 1, np.int64), np.empty(0, np.int64))


def _excluded_items(model: TrainedModel, users: np.ndarray, seen: bool, held_out: bool) -> CsrLists:
    """Global item rows, ascending, that are not to be recommended to local user rows `users` [n]."""
    if seen and not held_out:
        return model.shard.seen(users)
    sources = [model.shard.seen(users)] if seen else []
    if held_out:
        sources += [_held_out_items(split, users) for split in model.shard.held_out.values()]
    user = [np.empty(0, np.int64), *(source.row_ids().numpy() for source in sources)]
    item = [np.empty(0, np.int64), *(source.values.numpy() for source in sources)]
    return CsrLists.from_pairs(np.concatenate(user), np.concatenate(item), len(users))


def _held_out_items(held_out: HeldOut, users: np.ndarray) -> CsrLists:
    """Held-out items of local user rows `users` [n], none for a user without any."""
    if not len(held_out.users):
        return _empty_lists(len(users))
    position = np.searchsorted(held_out.users, users).clip(max=len(held_out.users) - 1)
    has_any = held_out.users[position] == users
    own = held_out.relevant.rows(position[has_any])
    return CsrLists.from_pairs(np.flatnonzero(has_any)[own.row_ids().numpy()], own.values.numpy(), len(users))


def candidate_mask(model: TrainedModel, rows: np.ndarray | None) -> Tensor:
    """[local items] bool: this rank's items among the global rows `rows` [n], or all its items. Collective."""
    if rows is None:
        return torch.from_numpy(model.shard.is_item)
    mask = torch.zeros(model.shard.item_rows, dtype=torch.bool)
    own = send_to_owners(np.unique(rows), model.shard.item_rows, model.runtime.control).table[:, 0]
    mask[torch.from_numpy(own - model.shard.first_item)] = True
    return mask


def trained_users(model: TrainedModel, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """This rank's users, or those among global rows `rows` [n]: local rows of the trained and of the untrained ones.

    An untrained user has no training interaction.
    """
    shard = model.shard
    if rows is None:
        offset = np.arange(shard.user_rows) % model.manifest.user_stride
        sizes = np.repeat([model.manifest.parts[part].users for part in shard.parts], model.manifest.user_stride)
        own = np.flatnonzero(offset < sizes)
    else:
        own = np.unique(rows) - shard.first_user
        own = own[(own >= 0) & (own < shard.user_rows)]
    is_trained = shard.user_degree[own] > 0
    return own[is_trained], own[~is_trained]
