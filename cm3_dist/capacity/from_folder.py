"""The sizes of a prepared folder: what every rank holds, read part by part, and what steps touch, drawn as in training.

Draws are keyed by part, never by rank, so one process draws what any number of ranks would draw; the owner of each row
then determines what crosses between ranks.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cm3_dist.capacity.hardware import Hardware
from cm3_dist.capacity.scenario import Degrees, Halo, Layers, RankLoad, RankStep, Relation, Scenario, exact_layers
from cm3_dist.config.settings import Machine, Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.neighbor_sampling import Fanouts, Sampler
from cm3_dist.graph.shard import Adjacency, Shard, column, load_shard, own_parts
from cm3_dist.graph.sparse_ops import GatherSpMM
from cm3_dist.graph.sparse_ops import LinearMap as Operator
from cm3_dist.pipeline.batch_sampler import Batch, BatchSampler
from partition.folder import layout
from partition.folder.arrays import read_graph, read_similar
from partition.folder.manifest import Manifest, read_manifest


def scenario_from_folder(settings: Settings, root: Path, hardware: Hardware, inside: float | None) -> Scenario:
    """A prepared folder, counted for so many ranks.

    Raises:
        InputError: it is not a prepared folder, a file is torn, or the ranks do not divide its parts.
    """
    manifest = read_manifest(root)
    loads = rank_loads(root, manifest, hardware.ranks)
    similar = sum(load.similar.edges for load in loads) / manifest.items
    counted = sum(part.inner_edges for part in manifest.parts) / max(manifest.train, 1)
    users, items = (_degrees(root, manifest, file) for file in (layout.USERS, layout.ITEMS))
    share = counted if inside is None else inside
    return Scenario(manifest, settings, hardware, share, similar, users, items, root, tuple(loads))


def _degrees(root: Path, manifest: Manifest, file: str) -> Degrees:
    found = [column(layout.part_dir(root, part) / file, "train_degree") for part in range(manifest.num_parts)]
    degree, nodes = np.unique(np.concatenate(found), return_counts=True)
    return Degrees(degree.astype(float), nodes.astype(float))


def rank_loads(root: Path, manifest: Manifest, ranks: int) -> list[RankLoad]:
    """What every rank holds. Reads one part's graph at a time."""
    found = [_count(root, manifest, own_parts(manifest, root, rank, ranks), ranks) for rank in range(ranks)]
    # remote[kind][r, s]: rows of rank s that rank r needs.
    remote = {kind: np.stack([count.remote[kind] for count in found]) for kind in ("user", "item", "similar")}

    def relation(rank: int, rows: int, edges: int, kind: str) -> Relation:
        return Relation(rows, edges, Halo(int(remote[kind][rank].sum()), int(remote[kind][:, rank].sum())))

    loads = []
    for rank, count in enumerate(found):
        parts = own_parts(manifest, root, rank, ranks)
        users, items = len(parts) * manifest.user_stride, len(parts) * manifest.item_stride
        loads.append(
            RankLoad(
                parts=len(parts),
                user_rows=users,
                item_rows=items,
                users=sum(manifest.parts[part].users for part in parts),
                items=sum(manifest.parts[part].items for part in parts),
                user_from_item=relation(rank, users, count.edges["user"], "item"),
                item_from_user=relation(rank, items, count.edges["item"], "user"),
                similar=relation(rank, items, count.edges["similar"], "similar"),
                part_nodes=count.nodes,
                held_out=count.held_out,
            )
        )
    return loads


class _Count(NamedTuple):
    """One rank's parts."""

    edges: dict[str, int]  # by kind of the rows computed
    remote: dict[str, np.ndarray]  # [ranks] by kind of the sources: how many rows each other rank owns
    nodes: int
    held_out: dict[str, tuple[float, float]]


def _count(root: Path, manifest: Manifest, parts: range, ranks: int) -> _Count:
    edges, nodes = dict.fromkeys(("user", "item", "similar"), 0), 0
    rows: dict[str, list[np.ndarray]] = {kind: [] for kind in edges}
    held_out: dict[str, list[np.ndarray]] = {split: [] for split in layout.HELD_OUT}
    for part in parts:
        folder = layout.part_dir(root, part)
        graph = read_graph(folder / layout.GRAPH, manifest.weighted)
        similar = read_similar(folder / layout.ITEM_GRAPH)
        for relation, (source, _) in graph.edges.items():
            edges[relation[2]] += len(source)
        edges["similar"] += len(similar.neighbour)
        neighbours = np.unique(similar.neighbour)
        outside = int((neighbours // manifest.item_stride != part).sum())
        nodes += sum(map(len, graph.row.values())) + manifest.parts[part].items + outside
        for kind, found in (*graph.row.items(), ("similar", neighbours)):
            rows[kind].append(found)
        for split, name in layout.HELD_OUT.items():
            held_out[split].append(column(folder / name, "user"))
    remote = {}
    for kind, sources in rows.items():
        own = len(parts) * (manifest.user_stride if kind == "user" else manifest.item_stride)
        remote[kind] = np.bincount(np.unique(np.concatenate(sources)) // own, minlength=ranks)
        remote[kind][parts.start // len(parts)] = 0
    users = {split: np.concatenate(found) for split, found in held_out.items()}
    return _Count(edges, remote, nodes, {split: (len(np.unique(found)), len(found)) for split, found in users.items()})


def drawn_steps(scenario: Scenario, steps: int) -> list[list[RankStep]]:
    """The first `steps` steps on every rank: [steps][ranks]. Loads the whole graph into this process."""
    settings, loads = scenario.settings, list(scenario.loads)
    with distributed(Machine(device="cpu")) as runtime:
        shard = load_shard(settings.data.path, 0, 1)
        batches = BatchSampler(shard, settings.train.batch_size, settings.negatives, settings.train.seed)
        fanouts = Fanouts.of(settings.propagation)
        sampler = Sampler(shard, fanouts, settings.train.seed, runtime.group, runtime.planning)
        draw = _Draw(shard, settings, loads, sampler if scenario.mode == "sampled" else None)
        return [draw.step(batch, step) for step, batch in enumerate(islice(batches.epoch(0), steps))]


class _Frontier(NamedTuple):
    """Global rows in the order of a matrix, and how many rows of their kind a rank owns."""

    rows: np.ndarray
    per_rank: int

    def by_rank(self, ranks: int) -> list[int]:
        """Rows by owner."""
        count: list[int] = np.bincount(self.rows // self.per_rank, minlength=ranks).tolist()
        return count


class _Draw:
    def __init__(self, shard: Shard, settings: Settings, loads: list[RankLoad], sampler: Sampler | None) -> None:
        self._shard, self._settings, self._loads, self._sampler = shard, settings, loads, sampler
        self._users, self._items = loads[0].user_rows, loads[0].item_rows  # per rank
        self._ranks = len(loads)

    def step(self, batch: Batch, step: int) -> list[RankStep]:
        """Sizes of one step on every rank."""
        ranks, rank = self._ranks, batch.user // self._users
        alone = not len(batch.negative)  # in-batch negatives
        wanted = batch.positive if alone else np.concatenate([batch.positive, batch.negative])
        requested = _halos(rank if alone else np.tile(rank, 2), wanted, self._items, ranks)
        positive = _halos(rank, batch.positive, self._items, ranks)
        users, items = _Frontier(np.unique(batch.user), self._users), _Frontier(np.unique(wanted), self._items)
        repelled = _Frontier(np.unique(batch.positive if alone else batch.negative), self._items)
        user_count, item_count = users.by_rank(ranks), items.by_rank(ranks)
        layers = (
            self._exact(users, items) if self._sampler is None else self._sampled(self._sampler, users, items, step)
        )
        return [
            RankStep(
                **vars(layers[r]),
                positives=int((rank == r).sum()),
                users=user_count[r],
                items=item_count[r],
                requested=requested[r].received,
                positive_halo=positive[r],
                most_users=max(user_count),
                most_items=max(repelled.by_rank(ranks)),
            )
            for r in range(ranks)
        ]

    def _exact(self, users: _Frontier, items: _Frontier) -> list[Layers]:
        found = []
        for rank, load in enumerate(self._loads):
            own_users = users.rows[users.rows // self._users == rank]
            own_items = items.rows[items.rows // self._items == rank]
            batch = len(own_users), _edges(self._shard.user_from_item, own_users)
            batch_items = len(own_items), _edges(self._shard.similar, own_items)
            found.append(exact_layers(self._settings.propagation, load, batch, batch_items))
        return found

    def _sampled(self, sampler: Sampler, users: _Frontier, items: _Frontier, step: int) -> list[Layers]:
        """The rows that the sampler reaches."""
        sample = sampler.draw(users.rows, items.rows, 0, step)
        reached, found = _Frontier(sample.users, self._users), _Frontier(sample.items, self._items)
        hops = sample.propagation.hops
        to_user = [self._relation(hop.user_from_item, reached, found) for hop in hops]
        to_item = [self._relation(hop.item_from_user, found, reached) for hop in hops]
        similar = [self._relation(operator, found, found) for _, operator in sample.propagation.similar]
        input_users, input_items = reached.by_rank(self._ranks), found.by_rank(self._ranks)
        return [
            Layers(
                [layer[rank] for layer in to_user],
                [layer[rank] for layer in to_item],
                [layer[rank] for layer in similar],
                input_users[rank],
                input_items[rank],
            )
            for rank in range(self._ranks)
        ]

    def _relation(self, operator: Operator, rows: _Frontier, sources: _Frontier) -> list[Relation]:
        """One layer of one relation, by rank."""
        pull, ranks = operator.forward, self._ranks
        assert isinstance(pull, GatherSpMM)
        degree = np.diff(pull.matrix.indptr.numpy())
        rank = rows.rows[: len(degree)] // rows.per_rank
        source = sources.rows[pull.matrix.indices.numpy()]
        halos = _halos(np.repeat(rank, degree), source, sources.per_rank, ranks)
        count, edges = np.bincount(rank, minlength=ranks), np.bincount(rank, degree, ranks)
        return [Relation(int(count[r]), int(edges[r]), halos[r]) for r in range(ranks)]


def _edges(adjacency: Adjacency, rows: np.ndarray) -> int:
    return int((adjacency.indptr[rows + 1] - adjacency.indptr[rows]).sum())


def _halos(rank: np.ndarray, source: np.ndarray, per_rank: int, ranks: int) -> list[Halo]:
    """Unique remote sources ([n] global rows) of what every rank ([n]) computes: received and sent."""
    total = np.int64(per_rank) * ranks
    needing, row = np.divmod(np.unique(rank.astype(np.int64) * total + source), total)
    table = np.bincount(needing * ranks + row // per_rank, minlength=ranks**2).reshape(ranks, ranks)
    np.fill_diagonal(table, 0)
    return [Halo(int(table[r].sum()), int(table[:, r].sum())) for r in range(ranks)]
