"""The k best columns compared with a stable sort: many ties, many and few columns, rows without candidates."""

from __future__ import annotations

import pytest
import torch

from cm3_dist.ranking.topk import GROUPS, GROUPS_PER_BEST, top_columns

WIDE = 3 * GROUPS[0] * GROUPS_PER_BEST + 7  # k = 3 is searched in groups, with columns left over


@pytest.mark.parametrize("columns", [1, 3, 40, WIDE, 4 * WIDE])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_ties_go_to_the_lower_column(columns: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(columns * levels)
    scores = torch.randint(levels, (300, columns), generator=generator).float()
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = -torch.inf
    scores[5] = -torch.inf
    scores[6] = 1.0
    scores[7] = torch.arange(columns).float()
    scores[8] = -torch.arange(columns).float()
    k = min(3, columns)
    order = scores.sort(dim=1, descending=True, stable=True)
    best, place = top_columns(scores.clone(), k)
    torch.testing.assert_close(best, order.values[:, :k], rtol=0, atol=0)
    known = best > -torch.inf
    assert torch.equal(place[known], order.indices[:, :k][known])
    assert torch.equal(scores.gather(1, place), best)
