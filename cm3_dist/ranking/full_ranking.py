"""Sharded full ranking: every user against the whole catalogue, in bounded memory.

Each rank broadcasts its items in blocks; all ranks score their own users against the block and keep a running top K.
Ties are broken by item row, so lists depend neither on block sizes nor on the number of ranks.

Shapes: n users to rank, b items in a block, rows of any width, K results per user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.distributed.traffic import gathered, summed, traffic
from cm3_dist.errors import AgreedError, NotFiniteError
from cm3_dist.graph.csr_lists import CsrLists
from cm3_dist.ranking.metrics import NAMES, ranking_metrics
from cm3_dist.ranking.topk import top_columns

METRIC_BLOCK = 16_384  # users per block when computing metrics


def evaluate(
    user_rows: Tensor,
    item_rows: Tensor,
    users: Tensor,
    relevant: CsrLists,
    seen: CsrLists,
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
        relevant: n lists of held-out items, global rows.
        seen: n lists of training items, global rows; they are not ranked.
        candidates: [local items] bool: items that are ranked.
        ks: cut-offs.
        user_block: users per block of scores.
        item_block: items per block of scores.
        group: process group of the ranks; None for one process.

    Returns:
        "recall@20" and so on -> mean over the users of all ranks.

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
    # In blocks, because the metrics of a list take several times its memory.
    for some in torch.arange(len(users)).split(METRIC_BLOCK):
        metrics = ranking_metrics(ranked[some.to(ranked.device)].cpu(), relevant.rows(some), ks)
        sums[:-1] += torch.stack([metrics[name].sum() for name in names])
    if group is not None:
        sums = sums.to(user_rows.device)
        traffic.add("evaluation sums", summed(sums.nbytes, dist.get_world_size(group)))
        dist.all_reduce(sums, group=group)
    total = float(sums[-1])
    if total == 0:
        raise AgreedError("evaluation: no user has a held-out interaction to rank", "data.no-held-out")
    return {name: float(value) / total for name, value in zip(names, sums, strict=False)}


def top_k(
    user_rows: Tensor,
    item_rows: Tensor,
    users: Tensor,
    seen: CsrLists,
    candidates: Tensor,
    k: int,
    *,
    user_block: int = 1024,
    item_block: int = 8192,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The k items with the highest inner product for each of `users`. Collective. Arguments as in `evaluate`.

    Returns:
        Scores [n, k] and global item rows [n, k] int64, best first, ties by ascending row; -inf and -1 where a user has
        fewer than k items to rank.

    Raises:
        NotFiniteError: a row is not finite.
    """
    # All ranks raise together: if one raised alone, the others would wait in the next broadcast.
    bad = torch.stack([~_finite(user_rows), ~_finite(item_rows)]).to(torch.int32)
    if group is not None:
        traffic.add("evaluation sums", summed(bad.nbytes, dist.get_world_size(group)))
        dist.all_reduce(bad, dist.ReduceOp.MAX, group=group)
    if bad.any():
        raise NotFiniteError(
            f"evaluation: {'user' if bad[0] else 'item'} rows are not finite; start again with a lower "
            f"{'tables.lr or dense.lr' if bad[0] else 'dense.lr or tables.lr'}",
            "training.not-finite",
        )
    queries = user_rows[users.to(user_rows.device)]
    score = queries.new_full((len(users), k), -torch.inf)
    row = torch.full((len(users), k), -1, dtype=torch.int64, device=queries.device)
    keys = CsrLists(seen.indptr.to(queries.device), seen.values.to(queries.device))
    buffer = queries.new_empty(0)
    for block, rows in _item_blocks(item_rows, candidates.to(item_rows.device), item_block, group):
        for begin in range(0, len(users), user_block):
            part = slice(begin, min(begin + user_block, len(users)))
            # One buffer for all blocks: allocating a block of scores takes as long as computing it.
            buffer = buffer.resize_((part.stop - begin) * len(block))
            scores = torch.mm(queries[part], block.T, out=buffer.view(-1, len(block)))
            _mask(scores, keys, begin, rows)
            best, place = top_columns(scores, min(k, len(block)))
            place = torch.where(best == -torch.inf, -1, rows[place])
            # Earlier blocks have smaller rows, so a stable sort keeps ties in ascending order.
            merged, place = torch.cat([score[part], best], 1), torch.cat([row[part], place], 1)
            order = merged.sort(dim=1, descending=True, stable=True).indices[:, :k]
            score[part], row[part] = merged.gather(1, order), place.gather(1, order)
    return score, row


def _finite(rows: Tensor) -> Tensor:
    """Whether all values are finite, [] bool; in blocks, because `isfinite` takes as much memory as its input."""
    found = [torch.isfinite(block).all() for block in rows.split(METRIC_BLOCK)]
    return torch.stack(found).all()


def _item_blocks(
    item_rows: Tensor, candidates: Tensor, size: int, group: dist.ProcessGroup | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the candidates of every block of every rank: rows [b, width], global rows [b], ascending; b > 0."""
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


def _mask(scores: Tensor, seen: CsrLists, begin: int, rows: Tensor) -> None:
    """Sets the scores of items that users [begin, begin + n) have seen to -inf.

    Args:
        scores: [n, b], changed in place.
        seen: lists of all users.
        begin: first user of the block.
        rows: [b] global rows of the items, ascending.
    """
    low, high = seen.indptr[begin], seen.indptr[begin + len(scores)]
    values = seen.values[low:high]
    lengths = seen.indptr[begin : begin + len(scores) + 1].diff()
    user = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), lengths)
    column = torch.searchsorted(rows, values).clamp(max=len(rows) - 1)
    inside = rows[column] == values
    scores[user[inside], column[inside]] = -torch.inf
