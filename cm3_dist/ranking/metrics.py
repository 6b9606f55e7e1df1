"""Ranking metrics per user with binary gain, for any number of cut-offs, vectorised over users (docs/model.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3_dist.graph.csr_lists import CsrLists

NAMES = ("recall", "ndcg", "precision", "map")


def hits(ranked: Tensor, relevant: CsrLists) -> Tensor:
    """Which ranked items are relevant, [U, K] bool.

    Args:
        ranked: [U, K] int64 item rows; -1 where a list is shorter.
        relevant: U ascending lists of item rows.
    """
    if not len(relevant.values):
        return torch.zeros_like(ranked, dtype=torch.bool)
    span = int(torch.maximum(ranked.max(), relevant.values.max())) + 2  # so large that -1 matches no key
    known = relevant.row_ids() * span + relevant.values  # ascending: lists are
    wanted = torch.arange(len(ranked)).unsqueeze(1) * span + ranked
    place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return known[place] == wanted


def ranking_metrics(ranked: Tensor, relevant: CsrLists, ks: Sequence[int]) -> dict[str, Tensor]:
    """Recall, NDCG, precision and MAP at every K.

    Args:
        ranked: [U, max K] int64 item rows, best first; -1 where a list is shorter.
        relevant: U ascending lists of item rows, none empty.
        ks: cut-offs, none above ranked.shape[1].

    Returns:
        "recall@20" and so on -> [U] float64. NDCG's ideal and MAP's denominator are truncated at min(K, |relevant|);
        precision divides by K.
    """
    hit = hits(ranked, relevant).double()
    count = relevant.lengths.double()
    position = torch.arange(1, ranked.shape[1] + 1, dtype=torch.float64)
    discount = 1 / torch.log2(position + 1)
    found, gain = hit.cumsum(1), (hit * discount).cumsum(1)
    precision = (found / position * hit).cumsum(1)
    ideal = discount.cumsum(0)
    metrics = {}
    for k in ks:
        best = count.clamp(max=k)
        metrics[f"recall@{k}"] = found[:, k - 1] / count
        metrics[f"ndcg@{k}"] = gain[:, k - 1] / ideal[best.long() - 1]
        metrics[f"precision@{k}"] = found[:, k - 1] / k
        metrics[f"map@{k}"] = precision[:, k - 1] / best
    return metrics
