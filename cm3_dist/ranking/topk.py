"""The k best columns of every row, ties by ascending column; torch.topk leaves the order of ties undefined.

Shapes: n rows (users), m columns (items), k results per row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GROUPS = (32, 8)  # columns per group in the first and the second search
GROUPS_PER_BEST = 3  # groups are faster if there are at least this many times k of them


def top_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of every row.

    Args:
        scores: [n, m] floats.
        k: at most m.

    Returns:
        Scores and columns (int64), [n, k] each, best first, ties by ascending column.
    """
    # torch.topk is fast on GPUs; on CPUs it is several times slower than a search in groups.
    return _sorted(scores, k) if scores.is_cuda else _grouped(scores, k, GROUPS)


def _grouped(scores: Tensor, k: int, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """As `top_columns`: the k groups of `sizes[0]` columns with the largest maxima contain the k best columns.

    Only those groups are searched further, in groups of the next size.
    """
    groups = scores.shape[1] // sizes[0] if sizes else 0
    if groups < GROUPS_PER_BEST * k:
        return _sorted(scores, k)
    size = sizes[0]
    whole = scores[:, : groups * size].unflatten(1, (groups, size))
    best, group = whole.amax(2).topk(k + 1, dim=1)
    # A tie between groups at the cut: topk chose among them arbitrarily, so these rows are searched as a whole.
    tied = (best[:, k] == best[:, k - 1]) & (best[:, k] > -torch.inf)
    group = group[:, :k].sort(dim=1).values
    columns = (group.unsqueeze(2) * size + torch.arange(size, device=scores.device)).flatten(1)
    rest = torch.arange(groups * size, scores.shape[1], device=scores.device)
    columns = torch.cat([columns, rest.expand(len(scores), -1)], dim=1)
    found, place = _grouped(scores.gather(1, columns), k, sizes[1:])
    place = columns.gather(1, place)
    if tied.any():
        found[tied], place[tied] = _sorted(scores[tied], k)
    return found, place


def _sorted(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `top_columns`, with torch.topk."""
    best, place = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    if scores.shape[1] > k:
        # A tie at the cut: topk chose among the tied columns arbitrarily, so the lowest are looked up.
        tied = (best[:, k] == best[:, k - 1]) & (best[:, k] > -torch.inf)
        best, place = best[:, :k], place[:, :k]
        if tied.any():
            place[tied] = _lowest(scores[tied], best[tied, -1:], k)
            best = scores.gather(1, place)
    place, order = place.sort(dim=1)
    best, order = best.gather(1, order).sort(dim=1, descending=True, stable=True)
    return best, place.gather(1, order)


def _lowest(scores: Tensor, cut: Tensor, k: int) -> Tensor:
    """The k columns of every row whose score is above or equal to its `cut` [n, 1], ascending.

    Of the columns equal to the cut, the lowest are taken.
    """
    above, at = scores > cut, scores == cut
    missing = k - above.sum(dim=1, keepdim=True)
    kept = above | (at & (at.cumsum(1, dtype=torch.int32) <= missing))
    return kept.nonzero()[:, 1].view(len(scores), k)
