"""The sizes of a prepared folder: what every rank holds, read part by part, and what steps touch, drawn as in training.

Draws are keyed by part, never by rank, so one process draws what any number of ranks would; who owns a row then says
what crosses between them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cm3_dist.capacity.sizes import Halo, RankLoad, RankStep, Relation
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.graph.neighbor_sampling import Fanouts, Sampler
from cm3_dist.graph.shard import Adjacency, Shard, column, load_shard, own_parts
from cm3_dist.graph.sparse_ops import Pull
from cm3_dist.graph.sparse_ops import Relation as Operator
from cm3_dist.pipeline.batch_sampler import Batch, Batches
from partition.folder import layout
from partition.folder.arrays import read_graph, read_similar
from partition.folder.manifest import Manifest


@dataclass
class _Counts:
    """Of one rank's parts."""

    parts: range
    to_user: int = 0  # edges
    to_item: int = 0
    similar: int = 0
    nodes: int = 0
    largest: int = 0
    held_out: dict[str, tuple[float, float]] = field(default_factory=lambda: dict.fromkeys(layout.HELD_OUT, (0, 0)))
    # Rows at the other end of edges, by relation: how many each rank owns, this one's own left out.
    remote: dict[str, np.ndarray] = field(default_factory=dict)


def rank_loads(root: Path, manifest: Manifest, world_size: int) -> list[RankLoad]:
    """What every rank holds. Reads one part's graph at a time.

    Raises:
        InputError: a missing or torn file, or a part count that `world_size` does not divide.
    """
    ranks = [
        _count(root, manifest, own_parts(manifest, root, rank, world_size), world_size) for rank in range(world_size)
    ]
    return [_load(manifest, rank, ranks) for rank in range(world_size)]


def _count(root: Path, manifest: Manifest, parts: range, world_size: int) -> _Counts:
    counts = _Counts(parts)
    rows: dict[str, list[np.ndarray]] = {"user": [], "item": [], "similar": []}
    for part in parts:
        folder = layout.part_dir(root, part)
        graph, similar = read_graph(folder / layout.GRAPH), read_similar(folder / layout.ITEM_GRAPH)
        to_user, to_item = (len(graph.edges[relation][0]) for relation in (layout.ITEM_TO_USER, layout.USER_TO_ITEM))
        counts.to_user += to_user
        counts.to_item += to_item
        counts.similar += len(similar.neighbour)
        counts.largest = max(counts.largest, to_user + to_item + len(similar.neighbour))
        neighbours = np.unique(similar.neighbour)
        outside = int((neighbours // manifest.item_stride != part).sum())
        counts.nodes += sum(map(len, graph.row.values())) + manifest.parts[part].items + outside
        for kind, found in (*graph.row.items(), ("similar", neighbours)):
            rows[kind].append(found)
        for split, name in layout.HELD_OUT.items():
            users, (before, interactions) = column(folder / name, "user"), counts.held_out[split]
            counts.held_out[split] = before + len(np.unique(users)), interactions + len(users)
    for kind, sources in rows.items():
        own = len(parts) * (manifest.user_stride if kind == "user" else manifest.item_stride)
        counts.remote[kind] = np.bincount(np.unique(np.concatenate(sources)) // own, minlength=world_size)
        counts.remote[kind][parts.start // len(parts)] = 0
    return counts


def _load(manifest: Manifest, rank: int, ranks: list[_Counts]) -> RankLoad:
    counts = ranks[rank]
    user_rows, item_rows = len(counts.parts) * manifest.user_stride, len(counts.parts) * manifest.item_stride

    def halo(kind: str) -> Halo:
        return Halo(int(counts.remote[kind].sum()), int(sum(other.remote[kind][rank] for other in ranks)))

    return RankLoad(
        len(counts.parts),
        user_rows,
        item_rows,
        sum(manifest.parts[part].users for part in counts.parts),
        sum(manifest.parts[part].items for part in counts.parts),
        Relation(user_rows, counts.to_user, halo("item")),
        Relation(item_rows, counts.to_item, halo("user")),
        Relation(item_rows, counts.similar, halo("similar")),
        counts.nodes,
        counts.largest / max(counts.to_user + counts.to_item + counts.similar, 1),
        counts.held_out,
    )


def drawn_steps(
    settings: Settings, mode: str, loads: list[RankLoad], runtime: Runtime, steps: int
) -> list[list[RankStep]]:
    """The first `steps` steps, on every rank. Loads the whole graph into this one process (`runtime` has one rank)."""
    shard = load_shard(settings.data.path, 0, 1)
    batches = Batches(shard, settings.train.batch_size, settings.negatives, settings.train.seed)
    draw = _Draw(shard, settings, mode, loads, runtime)
    return [draw.step(batch, step) for step, batch in enumerate(islice(batches.epoch(0), steps))]


class _Layers(NamedTuple):
    """Of a `RankStep`."""

    user_from_item: list[Relation]
    item_from_user: list[Relation]
    similar: list[Relation]
    input_users: int
    input_items: int


class _Frontier(NamedTuple):
    """Global rows in the order of a matrix, and how many rows of their kind a rank owns."""

    rows: np.ndarray
    per_rank: int


class _Draw:
    def __init__(self, shard: Shard, settings: Settings, mode: str, loads: list[RankLoad], runtime: Runtime) -> None:
        self._shard, self._settings, self._loads = shard, settings, loads
        fanouts = Fanouts.of(settings.propagation)
        sampler = Sampler(shard, fanouts, settings.train.seed, runtime.group, runtime.planning)
        self._sampler = sampler if mode == "sampled" else None
        self._users, self._items = loads[0].user_rows, loads[0].item_rows  # of one rank

    def step(self, batch: Batch, step: int) -> list[RankStep]:
        """Sizes of one step on every rank."""
        world_size = len(self._loads)
        rank = batch.user // self._users
        users = np.unique(batch.user)
        wanted = np.unique(np.concatenate([batch.positive, batch.negative]))
        counted = np.unique(batch.negative if len(batch.negative) else batch.positive)
        alone = not len(batch.negative)
        both = (rank, batch.positive) if alone else (np.tile(rank, 2), np.concatenate([batch.positive, batch.negative]))
        asked = _halos(*both, self._items, world_size)
        positive = _halos(rank, batch.positive, self._items, world_size)
        user_count = np.bincount(users // self._users, minlength=world_size)
        item_count = np.bincount(wanted // self._items, minlength=world_size)
        most_items = int(np.bincount(counted // self._items).max())
        layers = (self._exact if self._sampler is None else self._sampled)(users, wanted, step)
        return [
            RankStep(
                int((rank == r).sum()),
                int(user_count[r]),
                int(item_count[r]),
                int(asked[r].received),
                *layers[r],
                positive[r],
                int(user_count.max()),
                most_items,
            )
            for r in range(world_size)
        ]

    def _exact(self, users: np.ndarray, items: np.ndarray, step: int) -> list[_Layers]:
        """All rows of all layers but the last, of which the batch's."""
        options, found = self._settings.propagation, []
        for rank, load in enumerate(self._loads):
            own_users = users[users // self._users == rank]
            own_items = items[items // self._items == rank]
            to_user, to_item, similar = load.user_from_item, load.item_from_user, load.similar
            batch = Relation(len(own_users), _edges(self._shard.user_from_item, own_users), to_user.halo)
            batch_items = Relation(len(own_items), _edges(self._shard.similar, own_items), similar.halo)
            layers, alike = options.user_item_layers, options.item_item_layers
            found.append(
                _Layers(
                    [batch, *[to_user] * (layers - 1)] if layers else [],
                    [to_item] * layers,
                    [batch_items, *[similar] * (alike - 1)] if alike else [],
                    load.user_rows,
                    load.item_rows,
                )
            )
        return found

    def _sampled(self, users: np.ndarray, items: np.ndarray, step: int) -> list[_Layers]:
        """The rows that the sampler reaches."""
        assert self._sampler is not None
        sample = self._sampler.draw(users, items, 0, step)
        users_of, items_of = _Frontier(sample.users, self._users), _Frontier(sample.items, self._items)
        hops, similar = sample.propagation.hops, sample.propagation.similar
        to_user = [self._relation(hop.user_from_item, users_of, items_of) for hop in hops]
        to_item = [self._relation(hop.item_from_user, items_of, users_of) for hop in hops]
        alike = [self._relation(operator, items_of, items_of) for _, operator in similar]
        return [
            _Layers(
                [layer[rank] for layer in to_user],
                [layer[rank] for layer in to_item],
                [layer[rank] for layer in alike],
                int((sample.users // self._users == rank).sum()),
                int((sample.items // self._items == rank).sum()),
            )
            for rank in range(len(self._loads))
        ]

    def _relation(self, operator: Operator, rows: _Frontier, sources: _Frontier) -> list[Relation]:
        """One layer of one relation, by rank."""
        pull, world_size = operator.forward, len(self._loads)
        assert isinstance(pull, Pull)
        degree = np.diff(pull.matrix.indptr.numpy())
        rank = rows.rows[: len(degree)] // rows.per_rank
        source = sources.rows[pull.matrix.indices.numpy()]
        halos = _halos(np.repeat(rank, degree), source, sources.per_rank, world_size)
        count, edges = np.bincount(rank, minlength=world_size), np.bincount(rank, degree, world_size)
        return [Relation(int(count[r]), int(edges[r]), halos[r]) for r in range(world_size)]


def _edges(adjacency: Adjacency, rows: np.ndarray) -> int:
    return int((adjacency.indptr[rows + 1] - adjacency.indptr[rows]).sum())


def _halos(rank: np.ndarray, source: np.ndarray, per_rank: int, world_size: int) -> list[Halo]:
    """Distinct remote sources ([n] global rows) of what every rank ([n]) computes: received and sent."""
    total = np.int64(per_rank) * world_size
    asking, row = np.divmod(np.unique(rank.astype(np.int64) * total + source), total)
    table = np.bincount(asking * world_size + row // per_rank, minlength=world_size**2).reshape(world_size, world_size)
    np.fill_diagonal(table, 0)
    return [Halo(int(table[r].sum()), int(table[:, r].sum())) for r in range(world_size)]
