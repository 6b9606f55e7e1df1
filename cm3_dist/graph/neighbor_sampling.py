"""Sampled propagation: starting from the batch, each rank draws neighbours of its own nodes, layer by layer.

The result is an operator as in `graph.full_graph`, on the rows that the step needs; with fanout -1 both are equal.
Frontiers: T_0 the items that the loss uses; T_last their item-graph neighbourhood; F_0 = (batch users, T_last);
F_{k+1} = F_k plus the neighbours drawn for F_k, including those that other ranks drew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from cm3_dist.config.settings import Propagation as PropagationSettings
from cm3_dist.distributed.seeding import Stream, key
from cm3_dist.distributed.traffic import Kind
from cm3_dist.graph.halo_exchange import Exchange, send_to_owners
from cm3_dist.graph.lightgcn import Hop, Propagation
from cm3_dist.graph.part_graph import ITEM, SIMILAR, USER, Edges
from cm3_dist.graph.shard import Shard
from cm3_dist.graph.sparse_ops import Csr, GatherSpMM, LinearMap
from cm3_dist.kernels import Kernels
from partition.folder import layout


@dataclass(frozen=True)
class Fanouts:
    """Neighbours per node in each layer, nearest layer first; -1: all."""

    user_item: list[int]
    similar: list[int]

    @staticmethod
    def of(settings: PropagationSettings) -> Fanouts:
        """The fanouts in `settings`, where one number applies to all layers."""
        layers = settings.user_item_layers
        fanouts = settings.fanouts * layers if len(settings.fanouts) == 1 else settings.fanouts
        return Fanouts(fanouts[:layers], [settings.item_fanout] * settings.item_item_layers)


class _Frontier:
    """Local rows of one node type in the order in which they were reached. Smaller frontiers are prefixes."""

    def __init__(self, rows: int, first: int) -> None:
        self.first = first  # global row of local row 0
        self.rows = np.empty(0, np.int64)
        self.position = np.full(rows, -1, np.int64)  # of a local row in `rows`

    def add(self, rows: np.ndarray) -> None:
        """Appends those of the local rows `rows` [n] that are new, in ascending order."""
        new = np.unique(rows[self.position[rows] < 0])
        self.position[new] = len(self.rows) + np.arange(len(new))
        self.rows = np.concatenate([self.rows, new])


@dataclass(frozen=True)
class Sample:
    """A step's operator and the local rows F_L whose ego embeddings are its input, in that order."""

    propagation: Propagation
    users: np.ndarray  # [n] int64
    items: np.ndarray  # [m] int64


class Sampler:
    """Draws a step's operator. All ranks must call `draw` in the same order, each from one thread."""

    def __init__(
        self,
        shard: Shard,
        fanouts: Fanouts,
        seed: int,
        group: dist.ProcessGroup,
        planning: dist.ProcessGroup,
        kernels: Kernels = "torch",
    ) -> None:
        self._shard, self._fanouts, self._seed, self._kernels = shard, fanouts, seed, kernels
        self._group, self._planning = group, planning

    def draw(self, batch_users: np.ndarray, batch_items: np.ndarray, epoch: int, step: int) -> Sample:
        """Draws the operator whose result has the given rows. Collective.

        Args:
            batch_users: [n] int64 local rows, ascending: the users of F_0.
            batch_items: [m] int64 local rows, ascending: the items T_0.
            epoch: with `step`, the key of the random draws.
            step: within the epoch.
        """
        shard = self._shard
        u, i = _Frontier(shard.user_rows, shard.first_user), _Frontier(shard.item_rows, shard.first_item)
        u.add(batch_users)
        i.add(batch_items)
        similar = []
        for layer, fanout in enumerate(self._fanouts.similar):
            wanted = len(i.rows)
            similar.append((wanted, self._layer(SIMILAR, i, i, wanted, fanout, (epoch, step, layer, 1))))
        hops = []
        for layer, fanout in enumerate(self._fanouts.user_item):
            users, items = len(u.rows), len(i.rows)
            to_user = self._sources(layout.ITEM_TO_USER, u, users, fanout, (epoch, step, layer, 2))
            to_item = self._sources(layout.USER_TO_ITEM, i, items, fanout, (epoch, step, layer, 3))
            # Both frontiers grow before either block is built, because columns index the larger frontiers.
            exchange_items = self._reach(i, to_user, "user-item rows")
            exchange_users = self._reach(u, to_item, "user-item rows")
            hops.append(
                Hop(
                    users,
                    items,
                    self._compile(to_user, u, i, users, *exchange_items),
                    self._compile(to_item, i, u, items, *exchange_users),
                )
            )
        return Sample(Propagation(hops, similar), u.rows, i.rows)

    def _layer(
        self,
        relation: tuple[str, str, str],
        to: _Frontier,
        source: _Frontier,
        wanted: int,
        fanout: int,
        words: tuple[int, ...],
    ) -> LinearMap:
        edges = self._sources(relation, to, wanted, fanout, words)
        return self._compile(edges, to, source, wanted, *self._reach(source, edges, "item-graph rows"))

    def _sources(
        self, relation: tuple[str, str, str], to: _Frontier, wanted: int, fanout: int, words: tuple[int, ...]
    ) -> Edges:
        """Draws edges of the first `wanted` rows of the frontier; destinations are local rows."""
        manifest = self._shard.manifest
        stride = {USER: manifest.user_stride, ITEM: manifest.item_stride}[relation[2]]
        rows = np.sort(to.rows[:wanted])
        cuts = np.searchsorted(rows, np.arange(len(self._shard.graphs) + 1) * stride)
        drawn = []
        for index, graph in enumerate(self._shard.graphs):
            offsets = rows[cuts[index] : cuts[index + 1]] - index * stride
            edges = graph.sample(relation, offsets, fanout, key(Stream.NEIGHBOURS, self._seed, *words, graph.part))
            drawn.append(Edges(edges.destination + index * stride, edges.source, edges.value))
        return Edges(
            destination=np.concatenate([edges.destination for edges in drawn]),
            source=np.concatenate([edges.source for edges in drawn]),
            value=np.concatenate([edges.value for edges in drawn]),
        )

    def _reach(self, frontier: _Frontier, edges: Edges, kind: Kind) -> tuple[np.ndarray, Exchange]:
        """Adds the sources of the edges to their owners' frontiers. Collective.

        Returns:
            The halo (global rows of other ranks, ascending) and the exchange that fetches it.
        """
        local = edges.source - frontier.first
        remote = (local < 0) | (local >= len(frontier.position))
        halo = np.unique(edges.source[remote])
        requests = send_to_owners(halo, len(frontier.position), self._planning)
        asked = requests.table[:, 0] - frontier.first
        frontier.add(np.concatenate([local[~remote], asked]))
        group = self._group if dist.get_world_size(self._planning) > 1 else None
        send = torch.from_numpy(frontier.position[asked])
        return halo, Exchange(send, requests.received, requests.asked, group, kind)

    def _compile(
        self, edges: Edges, to: _Frontier, source: _Frontier, wanted: int, halo: np.ndarray, exchange: Exchange
    ) -> LinearMap:
        local = edges.source - source.first
        remote = (local < 0) | (local >= len(source.position))
        columns = np.empty_like(edges.source)
        columns[~remote] = source.position[local[~remote]]
        columns[remote] = len(source.rows) + np.searchsorted(halo, edges.source[remote])
        rows = to.position[edges.destination]
        order = np.lexsort((edges.source, rows))  # the order of summation does not depend on the number of ranks
        indptr = np.zeros(wanted + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=wanted), out=indptr[1:])
        matrix = Csr.from_numpy(indptr, columns[order], edges.value[order], len(source.rows) + len(halo), self._kernels)
        return LinearMap.of(GatherSpMM(matrix, exchange))
