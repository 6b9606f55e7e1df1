"""Does a run keep each modality's neighbours? How many of an item's nearest by raw features are nearest by its rows."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.graph.csr_lists import Ragged
from cm3_dist.inference.trained_model import FinishedRun
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.ranking.full_ranking import top_k

NEAREST = 10
SAMPLE = 2000  # items looked at, over all ranks


def kept_neighbours(run: FinishedRun, nearest: int = NEAREST, sample: int = SAMPLE) -> dict[str, dict[str, float]]:
    """Rows -> modality -> mean share of an item's `nearest` by the raw features among its nearest by these rows.

    Rows: every modality's channel, the fused one, and the whole row before propagation (`ego`), and the final row. Both
    neighbourhoods go by cosine, over all items, the item itself left out. An item without features of a modality does
    not count there; items are an even sample of the rows. At random the share is `nearest` / items. Collective.
    """
    shard, runtime, dim = run.shard, run.runtime, run.settings.model.dim
    own = np.flatnonzero(shard.is_item)
    step = max(1, -(-run.manifest.items // sample))
    # The same items on any number of ranks: every step-th row, by its global number.
    asked = torch.from_numpy(own[(own + shard.first_item) % step == 0])
    features = {
        name: values.to(run.rows[1]) for name, values in run.trainer.features.gather(np.arange(shard.item_rows)).items()
    }
    blocks = dict(zip(run.channels, run.item_ego.split(dim, dim=1), strict=True))
    by_rows = {name: _nearest(run, rows, asked, nearest) for name, rows in blocks.items()}
    by_rows["ego"], by_rows["final"] = (_nearest(run, rows, asked, nearest) for rows in (run.item_ego, run.rows[1]))
    found: dict[str, dict[str, float]] = {name: {} for name in by_rows}
    for modality, values in features.items():
        raw, there = _nearest(run, values, asked, nearest), values[asked.to(values.device)].any(1).cpu()
        for name, near in by_rows.items():
            shared = (near.unsqueeze(2) == raw.unsqueeze(1)).any(2).double().mean(1)
            total = torch.stack([shared[there].sum(), there.sum().double()])
            dist.all_reduce(total, group=runtime.control)
            found[name][modality] = float(total[0] / total[1].clamp(min=1))
    return found


def _nearest(run: FinishedRun, rows: Tensor, asked: Tensor, nearest: int) -> Tensor:
    """[n, nearest] global rows of the items nearest to the local items `asked` [n] by cosine."""
    shard = run.shard
    itself = Ragged(torch.arange(len(asked) + 1), asked + shard.first_item)
    items = torch.from_numpy(shard.is_item)
    return top_k(l2_normalize(rows), l2_normalize(rows), asked, itself, items, nearest, group=run.runtime.rows_group)[
        1
    ].cpu()
