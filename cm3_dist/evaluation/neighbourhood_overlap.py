"""Neighbourhood overlap: how many of an item's nearest items by raw features are nearest by its embeddings too."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.graph.csr_lists import CsrLists
from cm3_dist.inference.trained_model import TrainedModel
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.ranking.full_ranking import top_k

NEAREST = 10
SAMPLE = 2000  # items compared, over all ranks


def neighbourhood_overlap(
    model: TrainedModel, nearest: int = NEAREST, sample: int = SAMPLE
) -> dict[str, dict[str, float]]:
    """Embedding -> modality -> mean share of an item's `nearest` by raw features among its `nearest` by the embedding.

    The embeddings are each channel and the whole row before propagation ("ego"), and the final row. Both neighbourhoods
    are by cosine, over all items, without the item itself. Items are an even sample of the rows; an item without
    features of a modality does not count for it. At random the share is `nearest` / items. Collective.
    """
    shard, runtime, dim = model.shard, model.runtime, model.settings.model.dim
    own = np.flatnonzero(shard.is_item)
    step = max(1, -(-model.manifest.items // sample))
    # The same items on any number of ranks: every step-th row, by its global number.
    sample_rows = torch.from_numpy(own[(own + shard.first_item) % step == 0])
    features = {
        name: values.to(model.rows[1]) for name, values in model.features.gather(np.arange(shard.item_rows)).items()
    }
    blocks = dict(zip(model.channels, model.item_ego.split(dim, dim=1), strict=True))
    by_rows = {name: _nearest(model, rows, sample_rows, nearest) for name, rows in blocks.items()}
    by_rows["ego"], by_rows["final"] = (
        _nearest(model, rows, sample_rows, nearest) for rows in (model.item_ego, model.rows[1])
    )
    found: dict[str, dict[str, float]] = {name: {} for name in by_rows}
    for modality, values in features.items():
        raw, has_features = (
            _nearest(model, values, sample_rows, nearest),
            values[sample_rows.to(values.device)].any(1).cpu(),
        )
        for name, near in by_rows.items():
            shared = (near.unsqueeze(2) == raw.unsqueeze(1)).any(2).double().mean(1)
            total = torch.stack([shared[has_features].sum(), has_features.sum().double()])
            dist.all_reduce(total, group=runtime.control)
            found[name][modality] = float(total[0] / total[1].clamp(min=1))
    return found


def _nearest(model: TrainedModel, rows: Tensor, sample_rows: Tensor, nearest: int) -> Tensor:
    """[n, nearest] global rows of the items nearest to the local items `sample_rows` [n] by cosine."""
    shard = model.shard
    itself = CsrLists(torch.arange(len(sample_rows) + 1), sample_rows + shard.first_item)
    items = torch.from_numpy(shard.is_item)
    unit = l2_normalize(rows)
    return top_k(unit, unit, sample_rows, itself, items, nearest, group=model.runtime.rows_group)[1].cpu()
