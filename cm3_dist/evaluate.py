"""Sharded full ranking: every user against the whole catalogue, in bounded memory.

Users stay with their rank; item blocks travel: each rank broadcasts its own, all ranks score their users against the
block and keep a running top K. Ties are broken by item row, so a list depends neither on block sizes nor on W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.metrics import NAMES, ranking_metrics
from cm3_dist.ragged import Ragged
from partition.errors import InputError


def evaluate(
    user_rows: Tensor,
    item_rows: Tensor,
    users: Tensor,
    relevant: Ragged,
    seen: Ragged,
    candidates: Tensor,
    ks: Sequence[int],
    *,
    user_block: int = 4096,
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
        FloatingPointError: a row is not finite.
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
    metrics = ranking_metrics(ranked.cpu(), relevant, ks) if len(users) else {}
    sums = torch.tensor(
        [float(metrics[name].sum()) if metrics else 0.0 for name in names] + [len(users)], dtype=torch.float64
    )
    if group is not None:
        sums = sums.to(user_rows.device)
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
    user_block: int = 4096,
    item_block: int = 8192,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of each of `users` by inner product: scores [n, k], global item rows [n, k] int64. Collective.

    Best first, ties by ascending row; -inf and -1 where fewer than k items may be ranked. Arguments as in `evaluate`.
    """
    # One flag for all ranks: a rank that raised alone would leave the others in the next broadcast.
    bad = torch.stack([~torch.isfinite(user_rows).all(), ~torch.isfinite(item_rows).all()]).to(torch.int32)
    if group is not None:
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=group)
    if bad.any():
        raise FloatingPointError(f"evaluation: {'user' if bad[0] else 'item'} rows are not finite")
    queries = user_rows[users.to(user_rows.device)]
    score = queries.new_full((len(users), k), -torch.inf)
    row = torch.full((len(users), k), -1, dtype=torch.int64, device=queries.device)
    keys = Ragged(seen.indptr.to(queries.device), seen.values.to(queries.device))
    for first, block, kept in _item_blocks(item_rows, candidates.to(item_rows.device), item_block, group):
        for begin in range(0, len(users), user_block):
            part = slice(begin, begin + user_block)
            scores = queries[part] @ block.T
            scores.masked_fill_(~kept, -torch.inf)
            _mask(scores, keys, begin, first)
            best, place = _top(scores, min(k, scores.shape[1]))
            place = torch.where(best == -torch.inf, -1, place + first)
            # Earlier blocks hold smaller rows, so a stable sort keeps ties in ascending order.
            merged, rows = torch.cat([score[part], best], 1), torch.cat([row[part], place], 1)
            order = merged.sort(dim=1, descending=True, stable=True).indices[:, :k]
            score[part], row[part] = merged.gather(1, order), rows.gather(1, order)
    return score, row


def _item_blocks(
    item_rows: Tensor, candidates: Tensor, size: int, group: dist.ProcessGroup | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Every block of every rank, ascending: global row of its first item, rows [b, width], candidates [b]."""
    world_size = 1 if group is None else dist.get_world_size(group)
    rank = 0 if group is None else dist.get_rank(group)
    for owner in range(world_size):
        for begin in range(0, len(item_rows), size):
            part = slice(begin, begin + size)
            block, kept = item_rows[part], candidates[part]
            if group is not None:
                block = block.contiguous() if owner == rank else torch.empty_like(block)
                flags = kept.to(torch.uint8)
                dist.broadcast(block, group_src=owner, group=group)
                dist.broadcast(flags, group_src=owner, group=group)
                kept = flags.bool()
            yield owner * len(item_rows) + begin, block, kept


def _mask(scores: Tensor, seen: Ragged, begin: int, first: int) -> None:
    """Sets the scores of what users [begin, begin + n) have seen to -inf; columns are items from row `first` on."""
    low, high = seen.indptr[begin], seen.indptr[begin + len(scores)]
    values = seen.values[low:high] - first
    lengths = seen.indptr[begin : begin + len(scores) + 1].diff()
    user = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), lengths)
    inside = (values >= 0) & (values < scores.shape[1])
    scores[user[inside], values[inside]] = -torch.inf


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of every row, ties by ascending column. torch.topk leaves ties in no order."""
    best, place = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if scores.shape[1] > k:
        # A tie across the cut: which of the tied columns came along is arbitrary, so the lowest ones are looked up.
        tied = (best[:, k] == best[:, k - 1]) & (best[:, k] > -torch.inf)
        best, place = best[:, :k], place[:, :k]
        if tied.any():
            place[tied] = _lowest(scores[tied], best[tied, -1:], k)
            best = scores.gather(1, place)
    place, order = place.sort(dim=1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, place.gather(1, order)


def _lowest(scores: Tensor, cut: Tensor, k: int) -> Tensor:
    """The k columns of every row above or at its `cut` [n, 1], ascending; of those at it, the lowest."""
    above, at = scores > cut, scores == cut
    missing = k - above.sum(dim=1, keepdim=True)
    kept = above | (at & (at.cumsum(1, dtype=torch.int32) <= missing))
    return kept.nonzero()[:, 1].view(len(scores), k)
