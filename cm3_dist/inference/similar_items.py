"""The items nearest to one item by the cosine of their final embeddings, and what each channel contributes to it.

Shapes: n items, C channels of width d.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cm3_dist.errors import InputError
from cm3_dist.inference.trained_model import TrainedModel
from cm3_dist.model.l2_normalize import l2_normalize

BLOCK = 8_192  # rows compared at a time
ALL = "all"  # the whole embedding rather than one channel


@dataclass(frozen=True)
class _Query:
    """The item whose neighbours are searched, on every rank."""

    row: int  # global
    final: Tensor  # [C * d] on the device
    features: dict[str, np.ndarray]  # modality -> [d_m]
    item_graph: dict[int, float]  # its row of the item graph: global row -> weight


def require_channel(model: TrainedModel, by: str) -> None:
    """Raises InputError if `by` is neither "all" nor a channel."""
    if by not in (ALL, *model.channels):
        raise InputError(f"--by {by}: there are {ALL}, {', '.join(model.channels)}", "channel.unknown")


def similar_items(model: TrainedModel, item: str | int, k: int = 10, by: str = ALL) -> list[dict[str, Any]]:
    """The `k` items nearest to `item`, itself left out. Collective; equal on all ranks.

    Args:
        model: the model.
        item: external id; text stands for a number where the ids are numbers.
        k: how many.
        by: order by "all", the cosine of final embeddings, or by the cosine of one channel.

    Returns:
        Per item, nearest first (ties by row): `item`, its external id; `cosine` of the final embeddings; `channels`,
        the cosine within each channel; `contributions` of the channels, which sum to `cosine`; `features`, the cosine
        of the raw features; `item_graph`, the weight of the edge to the item in the item graph, 0 if there is none;
        `train_degree`, its training interactions.

    Raises:
        InputError: an unknown item or channel.
    """
    require_channel(model, by)
    ids = model.item_ids
    query = _fetch(model, int(ids.rows([ids.parse(item) if isinstance(item, str) else item])[0]))
    best = _nearest_local(model, query, k, by)
    described = _describe(model, query, np.array([local for _, local in best], np.int64))
    own = [(score, entry) for (score, _), entry in zip(best, described, strict=True)]
    everyone: list[list[tuple[float, dict[str, Any]]]] = [[] for _ in range(model.runtime.world_size)]
    dist.all_gather_object(everyone, own, group=model.runtime.control)
    merged = sorted((pair for part in everyone for pair in part), key=lambda pair: -pair[0])
    return [entry for _, entry in merged[:k]]


def print_similar(item: str, by: str, found: list[dict[str, Any]]) -> None:
    """Prints what `similar_items` found as a table."""
    order = "the cosine of final rows" if by == ALL else f"the cosine of channel {by}"
    title = f"nearest to {item} by {order}; per channel its cosine, of the final rows and of the raw features"
    table = Table(title=title, title_justify="left")
    table.add_column("item", no_wrap=True)
    if found:
        raw = (f"raw {name}" for name in found[0]["features"])
        for name in ("cosine", *found[0]["channels"], *raw, "item graph", "interactions"):
            table.add_column(name, justify="right")
    for entry in found:
        numbers = [entry["cosine"], *entry["channels"].values(), *entry["features"].values(), entry["item_graph"]]
        table.add_row(str(entry["item"]), *(f"{number:.3f}" for number in numbers), f"{entry['train_degree']:,}")
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _fetch(model: TrainedModel, row: int) -> _Query:
    """Gets the item at global row `row` from the rank that owns it. Collective."""
    shard, device = model.shard, model.runtime.device
    final_rows = model.rows[1]
    owner = row // shard.item_rows
    content: list[Any] = [None]
    if owner == model.runtime.rank:
        local = row - shard.first_item
        edges = slice(*shard.similar.indptr[local : local + 2])
        content[0] = (
            final_rows[local].cpu(),
            {name: values[0].double().numpy() for name, values in model.features.gather(np.array([local])).items()},
            dict(zip(shard.similar.source[edges].tolist(), shard.similar.value[edges].tolist(), strict=True)),
        )
    dist.broadcast_object_list(content, group_src=owner, group=model.runtime.control)
    final, features, item_graph = content[0]
    return _Query(row, final.to(device), features, item_graph)


def _nearest_local(model: TrainedModel, query: _Query, k: int, by: str) -> list[tuple[float, int]]:
    """Cosine and local row of this rank's `k` nearest items, nearest first."""
    shard, dim = model.shard, model.settings.model.dim
    wanted = torch.from_numpy(shard.is_item).clone()
    if shard.first_item <= query.row < shard.first_item + shard.item_rows:
        wanted[query.row - shard.first_item] = False
    columns = slice(None)
    if by != ALL:
        begin = model.channels.index(by) * dim
        columns = slice(begin, begin + dim)
    direction = l2_normalize(query.final[columns].unsqueeze(0))[0]
    best: list[tuple[float, int]] = []
    for local in wanted.nonzero().squeeze(1).split(BLOCK):
        cosine = l2_normalize(model.rows[1][local.to(query.final.device)][:, columns]) @ direction
        score, order = cosine.double().sort(descending=True, stable=True)
        best += list(zip(score[:k].tolist(), local[order[:k].cpu()].tolist(), strict=True))
    return sorted(best, key=lambda pair: (-pair[0], pair[1]))[:k]


def _describe(model: TrainedModel, query: _Query, local: np.ndarray) -> list[dict[str, Any]]:
    """What the local items `local` [n] have in common with the query."""
    dim, shard = model.settings.model.dim, model.shard
    rows = model.rows[1][torch.from_numpy(local).to(query.final.device)].cpu().double()
    final = query.final.cpu().double()
    channels = _cosines(rows.view(len(rows), -1, dim), final.view(-1, dim))
    contributions = (
        l2_normalize(rows).view(len(rows), -1, dim).mul(l2_normalize(final.unsqueeze(0)).view(-1, dim)).sum(2)
    )
    features = {
        name: _cosines(values.double(), torch.from_numpy(query.features[name])).tolist()
        for name, values in model.features.gather(local).items()
    }
    ids = model.item_ids.take(local + shard.first_item).to_pylist()
    return [
        {
            "item": ids[n],
            "cosine": float(contributions[n].sum()),
            "channels": dict(zip(model.channels, channels[n].tolist(), strict=True)),
            "contributions": dict(zip(model.channels, contributions[n].tolist(), strict=True)),
            "features": {name: values[n] for name, values in features.items()},
            "item_graph": query.item_graph.get(int(local[n]) + shard.first_item, 0.0),
            "train_degree": int(shard.item_degree[local[n]]),
        }
        for n in range(len(local))
    ]


def _cosines(rows: Tensor, other: Tensor) -> Tensor:
    """Over the last axis; 0 where one of the two is zero."""
    return torch.nn.functional.cosine_similarity(rows, other.expand_as(rows), dim=-1, eps=1e-30)
