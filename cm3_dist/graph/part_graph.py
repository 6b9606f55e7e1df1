"""One part's graph, and its sampling with DGL: the only file of the trainer that imports it, and only to sample.

DGL's generator is a thread-local one whose stream depends on the order in which threads first drew, and a draw also
depends on the number of OpenMP threads. One thread for the whole process makes all draws, single-threaded, and proves
at its start that it has the stream that every other process has; then a draw depends on its seed alone.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from partition.folder import layout
from partition.folder.arrays import read_graph, read_similar

USER, ITEM = "user", "item"
SIMILAR = (ITEM, "similar", ITEM)
# Edges that dgl 1.1.3 draws with seed 1000 from 64 in-edges, fanout 8, in the first thread that draws at all.
_FIRST_STREAM = [5, 14, 25, 36, 52, 58, 60, 63]


@dataclass(frozen=True)
class Edges:
    """In-edges of some of this rank's rows."""

    destination: np.ndarray  # [n] int64: a global row, or an offset within the part where a method says so
    source: np.ndarray  # [n] int64 global row
    value: np.ndarray  # [n] float32: the entry of the normalised adjacency, or the item graph's weight


class PartGraph:
    """One part's in-edges: training interactions, normalised with full-graph degrees, and the item graph.

    Raises:
        InputError: a missing or torn file, by name.
    """

    def __init__(self, root: Path, manifest: layout.Manifest, part: int) -> None:
        self.part = part
        folder = layout.part_dir(root, part)
        self._first = {USER: part * manifest.user_stride, ITEM: part * manifest.item_stride}
        stored = read_graph(folder / layout.GRAPH)
        root_degree = {kind: 1 / np.sqrt(np.maximum(degree, 1)) for kind, degree in stored.degree.items()}
        sizes = {USER: manifest.parts[part].users, ITEM: manifest.parts[part].items}
        self._relations = {SIMILAR: _similar(folder / layout.ITEM_GRAPH, self._first[ITEM])}
        for relation, (source, destination) in stored.edges.items():  # sorted by destination, then source
            value = root_degree[relation[0]][source] * root_degree[relation[2]][destination]
            indptr = np.zeros(sizes[relation[2]] + 1, np.int64)
            np.cumsum(np.bincount(destination, minlength=len(indptr) - 1), out=indptr[1:])
            rows = stored.row[relation[0]]
            self._relations[relation] = _Relation.of(indptr, source, value.astype(np.float32), rows)

    def edges(self, relation: tuple[str, str, str]) -> Edges:
        """All in-edges of one relation; destinations are global rows."""
        stored = self._relations[relation]
        destination = np.repeat(np.arange(len(stored.degree)), stored.degree)
        return Edges(destination + self._first[relation[2]], stored.row[stored.source], stored.value)

    @cached_property
    def _graphs(self) -> dict[tuple[str, str, str], Any]:
        """A DGL graph for each relation, made when the first neighbours are drawn."""
        return {relation: _graph(relation, stored) for relation, stored in self._relations.items()}

    def sample(self, relation: tuple[str, str, str], offsets: np.ndarray, fanout: int, seed: int) -> Edges:
        """At most `fanout` in-edges of every node in `offsets` ([n] int64, ascending), without replacement; -1: all.

        Values are multiplied by degree/drawn, so that the expected sum over the drawn edges is the sum over all of them
        (normalising by the sampled degree instead is biased: dgl#1767). Destinations are offsets. The draw depends on
        the arguments alone.
        """
        return _executor().submit(self._draw, relation, offsets, fanout, seed).result()

    def _draw(self, relation: tuple[str, str, str], offsets: np.ndarray, fanout: int, seed: int) -> Edges:
        dgl, stored = _dgl(), self._relations[relation]
        dgl.seed(seed % 2**31)  # the C++ side takes an int32
        nodes = torch.from_numpy(offsets.astype(stored.source.dtype, copy=False))
        drawn = dgl.sampling.sample_neighbors(self._graphs[relation], {relation[2]: nodes}, fanout)
        edge = drawn.edata[dgl.EID].numpy()
        to, value = np.searchsorted(stored.indptr, edge, side="right") - 1, stored.value[edge]
        if fanout != -1:
            degree = stored.degree[to]
            value = (value * (degree / np.minimum(degree, fanout))).astype(np.float32)
        return Edges(to, stored.row[stored.source[edge]], value)


@dataclass(frozen=True)
class _Relation:
    """In-edges of a part's own nodes of one kind, as CSR."""

    indptr: np.ndarray  # [own + 1] int64
    source: np.ndarray  # [n] int32 or int64 node number: own nodes in offset order, then the halo, ascending by row
    value: np.ndarray  # [n] float32
    row: np.ndarray  # [source nodes] int64 global row

    @classmethod
    def of(cls, indptr: np.ndarray, source: np.ndarray, value: np.ndarray, row: np.ndarray) -> _Relation:
        """With node numbers as short as they may be."""
        kind = np.int32 if max(len(row), len(source)) < 2**31 else np.int64
        return cls(indptr, source.astype(kind), value, row)

    @cached_property
    def degree(self) -> np.ndarray:
        """[own] int64: in-edges in this relation."""
        return np.diff(self.indptr)


def _similar(path: Path, first: int) -> _Relation:
    """The item graph with nodes like those of graph.npz: the part's own items, then the neighbours in other parts."""
    stored = read_similar(path)
    own = first + np.arange(len(stored.indptr) - 1, dtype=np.int64)
    remote = (stored.neighbour < first) | (stored.neighbour >= first + len(own))
    halo = np.unique(stored.neighbour[remote])
    position = stored.neighbour - first
    position[remote] = len(own) + np.searchsorted(halo, stored.neighbour[remote])
    return _Relation.of(stored.indptr, position, stored.weight, np.concatenate([own, halo]))


def _graph(relation: tuple[str, str, str], stored: _Relation) -> Any:
    """The edges as compressed columns; the sources are in the same memory.

    Left to itself DGL would sort them, in an order that depends on the number of threads; and a draw picks by position.
    """
    # The item graph's destinations are sources too, and its graph has them all.
    sizes = {relation[2]: len(stored.degree)} | {relation[0]: len(stored.row)}
    kind = stored.source.dtype
    indptr = np.full(sizes[relation[2]] + 1, len(stored.source), kind)
    indptr[: len(stored.indptr)] = stored.indptr
    no_ids = torch.from_numpy(np.empty(0, kind))  # an edge's number is its place
    columns = torch.from_numpy(indptr), torch.from_numpy(stored.source), no_ids
    return _dgl().heterograph({relation: ("csc", columns)}, sizes)


def _dgl() -> Any:
    """DGL, imported when it is first needed: it takes over a second."""
    os.environ.setdefault("DGLBACKEND", "pytorch")  # else the import writes a file into the home folder
    import dgl

    return dgl


_pool: ThreadPoolExecutor | None = None


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        pool = ThreadPoolExecutor(1, thread_name_prefix="neighbours", initializer=_single_thread)
        if (stream := pool.submit(_fingerprint).result()) != _FIRST_STREAM:
            raise RuntimeError(
                f"dgl {_dgl().__version__}: its generator was used by another thread before the sampler's, or draws "
                f"differently from dgl 1.1.3 ({stream}); neighbour draws would not be reproducible"
            )
        _pool = pool
    return _pool


def _single_thread() -> None:
    # Torch sets a thread's OpenMP count when it first computes there, and DGL shares that setting: torch goes first.
    torch.get_num_threads()
    _dgl().utils.set_num_threads(1)


def _fingerprint() -> list[int]:
    dgl = _dgl()
    star = dgl.graph((torch.arange(1, 65), torch.zeros(64, dtype=torch.int64)))
    dgl.seed(1000)
    return sorted(dgl.sampling.sample_neighbors(star, torch.tensor([0]), 8).edata[dgl.EID].tolist())
