"""Sharded full ranking: every user against the whole catalogue, in bounded memory.

Users stay with their rank; item blocks travel: each rank broadcasts its own, all ranks score their users against the
block and keep a running top K. Ties are broken by item row, so a list depends neither on block sizes nor on W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.distributed.traffic import gathered, summed, traffic
from cm3_dist.errors import InputError, NotFiniteError
from cm3_dist.graph.csr_lists import Ragged
from cm3_dist.ranking.metrics import NAMES, ranking_metrics
from cm3_dist.ranking.topk import top_columns

METRIC_BLOCK = 16_384  # users whose metrics are reckoned at a time


def evaluate(
    user_rows: Tensor,
    item_rows: Tensor,
    users: Tensor,
    relevant: Ragged,
    seen: Ragged,
    candidates: Tensor,
    ks: Sequence[int],
    *,
    user_block: int = 1024,
    item_block: int = 8192,
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """Mean metrics over the users of all ranks. Collective.

    Args:
        user_rows: [local users, width] rows of this rank.
        item_rows: [local items, width] rows of this rank; all ranks have the same number.
        users: [n] int64 local users to evaluate.
        relevant: their held-out items, global rows.
        seen: their training items, global rows, which are not ranked.
        candidates: [local items] bool: items that are ranked.
        ks: cut-offs.
        user_block: users scored at a time.
        item_block: items scored at a time.
        group: None for one process.

    Raises:
        InputError: no rank has a user to evaluate.
        NotFiniteError: a row is not finite.
    """
    names = [f"{name}@{k}" for k in ks for name in NAMES]
    _, ranked = top_k(
        user_rows,
        item_rows,
        users,
        seen,
        candidates,
        max(ks),
        user_block=user_block,
        item_block=item_block,
        group=group,
    )
    sums = torch.tensor([0.0] * len(names) + [len(users)], dtype=torch.float64)
    # A user's hits and gains at every place take several times the memory of its list.
    for some in torch.arange(len(users)).split(METRIC_BLOCK):
        metrics = ranking_metrics(ranked[some.to(ranked.device)].cpu(), relevant.rows(some), ks)
        sums[:-1] += torch.stack([metrics[name].sum() for name in names])
    if group is not None:
        sums = sums.to(user_rows.device)
        traffic.add("evaluation sums", summed(sums.nbytes, dist.get_world_size(group)))
        dist.all_reduce(sums, group=group)
    total = float(sums[-1])
    if total == 0:
        raise InputError("evaluation: no user has a held-out interaction to rank")
    return {name: float(value) / total for name, value in zip(names, sums, strict=False)}


def top_k(
    user_rows: Tensor,
    item_rows: Tensor,
    users: Tensor,
    seen: Ragged,
    candidates: Tensor,
    k: int,
    *,
    user_block: int = 1024,
    item_block: int = 8192,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of each of `users` by inner product: scores [n, k], global item rows [n, k] int64. Collective.

    Best first, ties by ascending row; -inf and -1 where fewer than k items may be ranked. Arguments as in `evaluate`.
    """
    # One flag for all ranks: a rank that raised alone would leave the others in the next broadcast.
    bad = torch.stack([~_finite(user_rows), ~_finite(item_rows)]).to(torch.int32)
    if group is not None:
        traffic.add("evaluation sums", summed(bad.nbytes, dist.get_world_size(group)))
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=group)
    if bad.any():
        raise NotFiniteError(
            f"evaluation: {'user' if bad[0] else 'item'} rows are not finite; start again with a lower "
            f"{'tables.lr or dense.lr' if bad[0] else 'dense.lr or tables.lr'}"
        )
    queries = user_rows[users.to(user_rows.device)]
    score = queries.new_full((len(users), k), -torch.inf)
    row = torch.full((len(users), k), -1, dtype=torch.int64, device=queries.device)
    keys = Ragged(seen.indptr.to(queries.device), seen.values.to(queries.device))
    buffer = queries.new_empty(0)
    for block, rows in _item_blocks(item_rows, candidates.to(item_rows.device), item_block, group):
        for begin in range(0, len(users), user_block):
            part = slice(begin, min(begin + user_block, len(users)))
            # One buffer for all: a fresh block of scores costs as much as filling it.
            buffer = buffer.resize_((part.stop - begin) * len(block))
            scores = torch.mm(queries[part], block.T, out=buffer.view(-1, len(block)))
            _mask(scores, keys, begin, rows)
            best, place = top_columns(scores, min(k, len(block)))
            place = torch.where(best == -torch.inf, -1, rows[place])
            # Earlier blocks hold smaller rows, so a stable sort keeps ties in ascending order.
            merged, place = torch.cat([score[part], best], 1), torch.cat([row[part], place], 1)
            order = merged.sort(dim=1, descending=True, stable=True).indices[:, :k]
            score[part], row[part] = merged.gather(1, order), place.gather(1, order)
    return score, row


def _finite(rows: Tensor) -> Tensor:
    """Whether all of them are, [] bool; `isfinite` on all at once would take as much memory as the rows."""
    found = [torch.isfinite(block).all() for block in rows.split(METRIC_BLOCK)]
    return torch.stack(found).all()


def _item_blocks(
    item_rows: Tensor, candidates: Tensor, size: int, group: dist.ProcessGroup | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The candidates of every block of every rank: rows [b, width] and global rows [b], ascending, b > 0."""
    world_size = 1 if group is None else dist.get_world_size(group)
    rank = 0 if group is None else dist.get_rank(group)
    for owner in range(world_size):
        for begin in range(0, len(item_rows), size):
            part = slice(begin, begin + size)
            block, kept = item_rows[part], candidates[part]
            if group is not None:
                block = block.contiguous() if owner == rank else torch.empty_like(block)
                flags = kept.to(torch.uint8)
                if owner == rank:
                    traffic.add("ranked items", gathered(block.nbytes + flags.nbytes, world_size))
                dist.broadcast(block, group_src=owner, group=group)
                dist.broadcast(flags, group_src=owner, group=group)
                kept = flags.bool()
            place = kept.nonzero().squeeze(1)
            if len(place):
                yield block[place], place + (owner * len(item_rows) + begin)


def _mask(scores: Tensor, seen: Ragged, begin: int, rows: Tensor) -> None:
    """Sets the scores of what users [begin, begin + n) have seen to -inf; columns are the items `rows`, ascending."""
    low, high = seen.indptr[begin], seen.indptr[begin + len(scores)]
    values = seen.values[low:high]
    lengths = seen.indptr[begin : begin + len(scores) + 1].diff()
    user = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), lengths)
    column = torch.searchsorted(rows, values).clamp(max=len(rows) - 1)
    inside = rows[column] == values
    scores[user[inside], column[inside]] = -torch.inf
