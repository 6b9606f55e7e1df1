"""The items nearest to one item by the cosine of their final rows, and what each channel has to do with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.inference.id_map import OwnIds
from cm3_dist.inference.trained_model import FinishedRun
from cm3_dist.model.l2_normalize import l2_normalize

BLOCK = 65_536  # rows compared at a time
ALL = "all"


@dataclass(frozen=True)
class _Asked:
    """The item that is asked for, on every rank."""

    row: int  # global
    final: Tensor  # [C * d] on the device
    features: dict[str, np.ndarray]  # modality -> [d_m]
    graph: dict[int, float]  # its row of the item graph: global row -> weight


def nearest_items(run: FinishedRun, row: int, k: int, by: str = ALL) -> list[dict[str, Any]]:
    """The `k` items nearest to the item at global row `row`, itself left out. Collective; equal on all ranks.

    Args:
        run: the model.
        row: of an item.
        k: how many.
        by: what the order follows: "all", the cosine of whole final rows, or that of one channel.

    Returns:
        Per item, nearest first (ties by row): `item` its own id; `cosine` of the final rows; `channels`, the cosine
        within each channel, and `contributions`, whose sum is the cosine of the whole rows; `features`, the cosine of
        the raw features; `item_graph`, the weight of the item in the asked one's row of the item graph, 0 if it is
        none of its neighbours; `train_degree`.
    """
    asked = _fetch(run, row)
    items, shard, dim = run.rows[1], run.shard, run.settings.model.dim
    there = torch.from_numpy(shard.is_item).clone()
    if shard.first_item <= row < shard.first_item + shard.item_rows:
        there[row - shard.first_item] = False
    whole, channel = (
        l2_normalize(asked.final.unsqueeze(0))[0],
        l2_normalize(asked.final.view(1, -1), dim)[0].view(-1, dim),
    )
    names = run.channels
    best: list[tuple[float, int]] = []
    for local in there.nonzero().squeeze(1).split(BLOCK):
        rows = items[local.to(items.device)]
        if by == ALL:
            cosine = l2_normalize(rows) @ whole
        else:
            place = names.index(by)
            cosine = l2_normalize(rows[:, place * dim : (place + 1) * dim]) @ channel[place]
        score, order = cosine.double().sort(descending=True, stable=True)
        best += list(zip(score[:k].tolist(), local[order[:k].cpu()].tolist(), strict=True))
    best = sorted(best, key=lambda pair: (-pair[0], pair[1]))[:k]
    found = _explained(run, asked, np.array([local for _, local in best], np.int64))
    everyone: list[list[dict[str, Any]]] = [[] for _ in range(run.runtime.world_size)]
    own = [{**entry, "_score": score} for entry, (score, _) in zip(found, best, strict=True)]
    dist.all_gather_object(everyone, own, group=run.runtime.control)
    merged = sorted((entry for part in everyone for entry in part), key=lambda entry: -entry["_score"])[:k]
    return [{name: value for name, value in entry.items() if name != "_score"} for entry in merged]


def _fetch(run: FinishedRun, row: int) -> _Asked:
    shard, device = run.shard, run.runtime.device
    owner = row // shard.item_rows
    content: list[Any] = [None]
    if owner == run.runtime.rank:
        local = row - shard.first_item
        edges = slice(*shard.similar.indptr[local : local + 2])
        content[0] = (
            run.rows[1][local].cpu(),
            {name: values[0].double().numpy() for name, values in _features(run, np.array([local])).items()},
            dict(zip(shard.similar.source[edges].tolist(), shard.similar.value[edges].tolist(), strict=True)),
        )
    dist.broadcast_object_list(content, group_src=owner, group=run.runtime.control)
    final, features, graph = content[0]
    return _Asked(row, final.to(device), features, graph)


def _features(run: FinishedRun, rows: np.ndarray) -> dict[str, Tensor]:
    return run.trainer.features.gather(rows)


def _explained(run: FinishedRun, asked: _Asked, local: np.ndarray) -> list[dict[str, Any]]:
    """What the local items `local` [n] have in common with the asked one."""
    dim, shard = run.settings.model.dim, run.shard
    rows = run.rows[1][torch.from_numpy(local).to(run.rows[1].device)].cpu().double()
    final = asked.final.cpu().double()
    channels = _cosines(rows.view(len(rows), -1, dim), final.view(-1, dim))
    contributions = (
        l2_normalize(rows).view(len(rows), -1, dim).mul(l2_normalize(final.unsqueeze(0)).view(-1, dim)).sum(2)
    )
    features = {
        name: _cosines(values.double(), torch.from_numpy(asked.features[name])).tolist()
        for name, values in _features(run, local).items()
    }
    ids = OwnIds(shard.root, run.manifest, "item").take(local + shard.first_item).to_pylist()
    return [
        {
            "item": ids[n],
            "cosine": float(contributions[n].sum()),
            "channels": dict(zip(run.channels, channels[n].tolist(), strict=True)),
            "contributions": dict(zip(run.channels, contributions[n].tolist(), strict=True)),
            "features": {name: values[n] for name, values in features.items()},
            "item_graph": asked.graph.get(int(local[n]) + shard.first_item, 0.0),
            "train_degree": int(shard.item_degree[local[n]]),
        }
        for n in range(len(local))
    ]


def _cosines(rows: Tensor, other: Tensor) -> Tensor:
    """Over the last axis; 0 where one of them is zero."""
    return torch.nn.functional.cosine_similarity(rows, other.expand_as(rows), dim=-1, eps=1e-30)
