"""One part's graph, read and sampled with DGL: the only file of the trainer that imports it.

DGL's generator is a thread-local one whose stream depends on the order in which threads first drew, and a draw also
depends on the number of OpenMP threads. One thread for the whole process makes all draws, single-threaded, and proves
at its start that it has the stream that every other process has; then a draw depends on its seed alone.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from partition import layout
from partition.errors import InputError

os.environ.setdefault("DGLBACKEND", "pytorch")  # else the import of dgl writes a file into the home folder
import dgl

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
        self._graphs = {
            layout.USER_TO_ITEM: (user_item := _user_item(folder / layout.GRAPH)),
            layout.ITEM_TO_USER: user_item,
            SIMILAR: _similar(folder / layout.ITEM_GRAPH, self._first[ITEM]),
        }

    def edges(self, relation: tuple[str, str, str]) -> Edges:
        """All in-edges of one relation; destinations are global rows."""
        graph = self._graphs[relation]
        source, destination = graph.edges(etype=relation, order="eid")
        return Edges(
            destination.numpy() + self._first[relation[2]],
            graph.nodes[relation[0]].data["row"][source].numpy(),
            graph.edges[relation].data["value"].numpy(),
        )

    def sample(self, relation: tuple[str, str, str], offsets: np.ndarray, fanout: int, seed: int) -> Edges:
        """At most `fanout` in-edges of every node in `offsets` ([n] int64, ascending), without replacement; -1: all.

        Values are multiplied by degree/drawn, so that the expected sum over the drawn edges is the sum over all of them
        (normalising by the sampled degree instead is biased: dgl#1767). Destinations are offsets. The draw depends on
        the arguments alone.
        """
        return _executor().submit(self._draw, relation, offsets, fanout, seed).result()

    def _draw(self, relation: tuple[str, str, str], offsets: np.ndarray, fanout: int, seed: int) -> Edges:
        graph = self._graphs[relation]
        dgl.seed(seed % 2**31)  # the C++ side takes an int32
        drawn = dgl.sampling.sample_neighbors(
            graph,
            {relation[2]: torch.from_numpy(offsets)},
            {other: fanout if other == relation else 0 for other in graph.canonical_etypes},
        )
        source, destination = drawn.edges(etype=relation, order="eid")
        value = graph.edges[relation].data["value"][drawn.edges[relation].data[dgl.EID]].numpy()
        to = destination.numpy()
        if fanout != -1:
            degree = graph.in_degrees(destination, etype=relation).numpy()
            value = (value * (degree / np.minimum(degree, fanout))).astype(np.float32)
        return Edges(to, graph.nodes[relation[0]].data["row"][source].numpy(), value)


def _user_item(path: Path) -> dgl.DGLGraph:
    if not path.is_file():
        raise InputError(f"{path}: no such file; prepare the data again")
    try:
        stored = dgl.load_graphs(str(path))[0][0]
    except dgl.DGLError as error:
        raise InputError(f"{path}: cannot be read as a DGL graph: {str(error).splitlines()[-1].strip()}") from None
    nodes = {kind: stored.nodes[kind].data for kind in (USER, ITEM)}
    root = {kind: data["degree"].double().clamp(min=1).rsqrt() for kind, data in nodes.items()}
    edges, values = {}, {}
    for relation in (layout.USER_TO_ITEM, layout.ITEM_TO_USER):
        source, destination = stored.edges(etype=relation, order="eid")  # sorted by destination, then source
        edges[relation] = _columns(source, destination, stored.num_nodes(relation[2]))
        values[relation] = (root[relation[0]][source] * root[relation[2]][destination]).float()
    return _graph(edges, values, {kind: data["row"] for kind, data in nodes.items()})


def _similar(path: Path, first: int) -> dgl.DGLGraph:
    """Nodes 0..n-1 are the part's own items, then the neighbours in other parts, ascending by row, as in graph.dgl."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            indptr, neighbour, weight = arrays["indptr"], arrays["neighbour"], arrays["weight"]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    own = first + np.arange(len(indptr) - 1, dtype=np.int64)
    remote = (neighbour < first) | (neighbour >= first + len(own))
    halo = np.unique(neighbour[remote])
    position = neighbour - first
    position[remote] = len(own) + np.searchsorted(halo, neighbour[remote])
    destination = torch.from_numpy(np.repeat(np.arange(len(own)), np.diff(indptr)))
    edges = {SIMILAR: _columns(torch.from_numpy(position), destination, len(own) + len(halo))}
    return _graph(edges, {SIMILAR: torch.from_numpy(weight)}, {ITEM: torch.from_numpy(np.concatenate([own, halo]))})


Columns = tuple[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def _columns(source: torch.Tensor, destination: torch.Tensor, nodes: int) -> Columns:
    """Edges that are sorted by destination, as compressed columns.

    Left to itself DGL would sort them, in an order that depends on the number of threads; and a draw picks by position.
    """
    indptr = torch.zeros(nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(destination, minlength=nodes), 0, out=indptr[1:])
    return "csc", (indptr, source, torch.arange(len(source)))


def _graph(
    edges: dict[tuple[str, str, str], Columns],
    values: dict[tuple[str, str, str], torch.Tensor],
    rows: dict[str, torch.Tensor],
) -> dgl.DGLGraph:
    graph = dgl.heterograph(edges, {kind: len(row) for kind, row in rows.items()})
    for kind, row in rows.items():
        graph.nodes[kind].data["row"] = row
    for relation, value in values.items():
        graph.edges[relation].data["value"] = value
    return graph


_pool: ThreadPoolExecutor | None = None


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        pool = ThreadPoolExecutor(1, thread_name_prefix="neighbours", initializer=_single_thread)
        if (stream := pool.submit(_fingerprint).result()) != _FIRST_STREAM:
            raise RuntimeError(
                f"dgl {dgl.__version__}: its generator was used by another thread before the sampler's, or draws "
                f"differently from dgl 1.1.3 ({stream}); neighbour draws would not be reproducible"
            )
        _pool = pool
    return _pool


def _single_thread() -> None:
    # Torch sets a thread's OpenMP count when it first computes there, and DGL shares that setting: torch goes first.
    torch.get_num_threads()
    dgl.utils.set_num_threads(1)


def _fingerprint() -> list[int]:
    star = dgl.graph((torch.arange(1, 65), torch.zeros(64, dtype=torch.int64)))
    dgl.seed(1000)
    return sorted(dgl.sampling.sample_neighbors(star, torch.tensor([0]), 8).edata[dgl.EID].tolist())
