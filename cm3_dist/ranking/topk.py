"""The k best columns of every row, exactly: ties by ascending column, which torch.topk leaves in no order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GROUPS = (32, 8)  # columns whose maximum stands for them, at first and among what that leaves
GROUPS_PER_BEST = 3  # groups pay off when there are this many times k of them


def top_columns(scores: Tensor, k: int, sizes: Sequence[int] = GROUPS) -> tuple[Tensor, Tensor]:
    """Scores [n, m] -> the k <= m best of every row and their columns, [n, k] each, best first.

    Among many columns the k groups of `sizes[0]` columns with the largest maxima hold the k best: only those are
    searched further, in groups of the next size.
    """
    groups = scores.shape[1] // sizes[0] if sizes else 0
    if groups < GROUPS_PER_BEST * k:
        return _sorted(scores, k)
    size = sizes[0]
    whole = scores[:, : groups * size].unflatten(1, (groups, size))
    best, group = whole.amax(2).topk(k + 1, dim=1)
    # A tie at the cut between groups: which of them came along is arbitrary.
    tied = (best[:, k] == best[:, k - 1]) & (best[:, k] > -torch.inf)
    group = group[:, :k].sort(dim=1).values
    columns = (group.unsqueeze(2) * size + torch.arange(size, device=scores.device)).flatten(1)
    rest = torch.arange(groups * size, scores.shape[1], device=scores.device)
    columns = torch.cat([columns, rest.expand(len(scores), -1)], dim=1)
    found, place = top_columns(scores.gather(1, columns), k, sizes[1:])
    place = columns.gather(1, place)
    if tied.any():
        found[tied], place[tied] = _sorted(scores[tied], k)
    return found, place


def _sorted(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
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
