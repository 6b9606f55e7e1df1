"""The graph of one part: in-edges of its nodes in the training graph and the item graph, all or sampled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cm3_dist.graph.dgl_sampler import DglSampler
from partition.folder import layout
from partition.folder.arrays import read_graph, read_similar
from partition.folder.manifest import Manifest

USER, ITEM = "user", "item"
SIMILAR = (ITEM, "similar", ITEM)


@dataclass(frozen=True)
class Edges:
    """In-edges of some of this rank's rows."""

    destination: np.ndarray  # [n] int64: a global row, or an offset within the part where a method says so
    source: np.ndarray  # [n] int64 global row
    value: np.ndarray  # [n] float32: the entry of the normalised adjacency, or the item graph's weight


class PartGraph:
    """One part's in-edges: training interactions, normalised with full-graph degrees, and the item graph.

    With weights of interactions, w / sqrt(D_u D_i) is the value of an edge of weight w, where D is the weighted degree.

    Attributes:
        part: its number.
        weight: [n] float32 weights of the in-edges of the part's users, in the order of `edges`; None: all weigh 1.
        item_weighted_degree: [items] float64 of the part's items in the full graph; None: their degrees.

    Raises:
        InputError: a file is missing or damaged.
    """

    def __init__(self, root: Path, manifest: Manifest, part: int) -> None:
        self.part = part
        folder = layout.part_dir(root, part)
        self._first = {USER: part * manifest.user_stride, ITEM: part * manifest.item_stride}
        stored = read_graph(folder / layout.GRAPH, manifest.weighted)
        weights = stored.weights
        degrees = stored.degree if weights is None else weights.degree
        root_degree = {kind: 1 / np.sqrt(np.where(degree > 0, degree, 1)) for kind, degree in degrees.items()}
        sizes = {USER: manifest.parts[part].users, ITEM: manifest.parts[part].items}
        self._in_edges = {SIMILAR: _similar(folder / layout.ITEM_GRAPH, self._first[ITEM])}
        for relation, (source, destination) in stored.edges.items():  # sorted by destination, then source
            value = root_degree[relation[0]][source] * root_degree[relation[2]][destination]
            if weights is not None:
                value *= weights.edge[relation]
            indptr = np.zeros(sizes[relation[2]] + 1, np.int64)
            np.cumsum(np.bincount(destination, minlength=len(indptr) - 1), out=indptr[1:])
            rows = stored.row[relation[0]]
            self._in_edges[relation] = _InEdges.of(indptr, source, value.astype(np.float32), rows)
        self.weight = None if weights is None else weights.edge[layout.ITEM_TO_USER]
        self.item_weighted_degree = None if weights is None else weights.degree[ITEM][: sizes[ITEM]].copy()

    def edges(self, relation: tuple[str, str, str]) -> Edges:
        """All in-edges of one relation. Destinations are global rows."""
        stored = self._in_edges[relation]
        destination = np.repeat(np.arange(len(stored.degree)), stored.degree)
        return Edges(destination + self._first[relation[2]], stored.row[stored.source], stored.value)

    def sample(self, relation: tuple[str, str, str], offsets: np.ndarray, fanout: int, seed: int) -> Edges:
        """Draws at most `fanout` in-edges per node without replacement.

        Values are multiplied by degree / number drawn, so the expected sum over the drawn edges is the sum over all
        edges (normalising by the sampled degree instead is biased: dgl#1767).

        Args:
            relation: (source type, name, destination type).
            offsets: [n] int64 offsets of nodes within the part, ascending.
            fanout: -1: all in-edges.
            seed: the draw depends only on it and the other arguments.

        Returns:
            The edges; destinations are offsets.
        """
        stored = self._in_edges[relation]
        edge = self._samplers[relation].draw(offsets, fanout, seed)
        destination, value = np.searchsorted(stored.indptr, edge, side="right") - 1, stored.value[edge]
        if fanout != -1:
            degree = stored.degree[destination]
            value = (value * (degree / np.minimum(degree, fanout))).astype(np.float32)
        return Edges(destination, stored.row[stored.source[edge]], value)

    @cached_property
    def _samplers(self) -> dict[tuple[str, str, str], DglSampler]:
        return {
            relation: DglSampler(relation, stored.indptr, stored.source, len(stored.row))
            for relation, stored in self._in_edges.items()
        }


@dataclass(frozen=True)
class _InEdges:
    """In-edges of a part's own nodes in one relation, as CSR."""

    indptr: np.ndarray  # [own + 1] int64
    source: np.ndarray  # [n] int32 or int64 node number: own nodes in offset order, then the halo, ascending by row
    value: np.ndarray  # [n] float32
    row: np.ndarray  # [source nodes] int64 global row

    @classmethod
    def of(cls, indptr: np.ndarray, source: np.ndarray, value: np.ndarray, row: np.ndarray) -> _InEdges:
        """With int32 node numbers where they suffice."""
        dtype = np.int32 if max(len(row), len(source)) < 2**31 else np.int64
        return cls(indptr, source.astype(dtype), value, row)

    @cached_property
    def degree(self) -> np.ndarray:
        """[own] int64: number of in-edges."""
        return np.diff(self.indptr)


def _similar(path: Path, first: int) -> _InEdges:
    """The item graph, with nodes ordered as in graph.npz: own items, then the neighbours in other parts."""
    stored = read_similar(path)
    own = first + np.arange(len(stored.indptr) - 1, dtype=np.int64)
    remote = (stored.neighbour < first) | (stored.neighbour >= first + len(own))
    halo = np.unique(stored.neighbour[remote])
    position = stored.neighbour - first
    position[remote] = len(own) + np.searchsorted(halo, stored.neighbour[remote])
    return _InEdges.of(stored.indptr, position, stored.weight, np.concatenate([own, halo]))
