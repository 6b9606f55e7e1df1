"""Neighbour draws with DGL: the only file of the trainer that imports it, and only when neighbours are sampled.

DGL's generator is thread-local. Its stream depends on the order in which threads first drew, and a draw also depends
on the number of OpenMP threads. Therefore one thread per process makes all draws, with one OpenMP thread, and checks a
known draw at start-up, so that all processes use the same stream; a draw then depends on its seed alone.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch

# Edges that dgl 1.1.3 draws with seed 1000 from 64 in-edges, fanout 8, in the first thread that draws at all.
_FIRST_STREAM = [5, 14, 25, 36, 52, 58, 60, 63]


class DglSampler:
    """Draws in-edges of one relation of one part.

    Args:
        relation: (source type, name, destination type).
        indptr: [destinations + 1] int64.
        source: [edges] int32 or int64 node numbers, in the order of `indptr`.
        sources: number of source nodes.
    """

    def __init__(self, relation: tuple[str, str, str], indptr: np.ndarray, source: np.ndarray, sources: int) -> None:
        self._relation, self._indptr, self._source, self._sources = relation, indptr, source, sources

    def draw(self, destinations: np.ndarray, fanout: int, seed: int) -> np.ndarray:
        """Draws at most `fanout` in-edges per destination without replacement; -1 takes all.

        Args:
            destinations: [n] int64 node numbers, ascending.
            fanout: in-edges per destination.
            seed: the draw depends on it and on the other arguments only.

        Returns:
            [m] int64 edge numbers, positions in `source`.
        """
        return _executor().submit(self._draw, destinations, fanout, seed).result()

    def _draw(self, destinations: np.ndarray, fanout: int, seed: int) -> np.ndarray:
        dgl = _dgl()
        dgl.seed(seed % 2**31)  # the C++ side takes an int32
        nodes = torch.from_numpy(destinations.astype(self._source.dtype, copy=False))
        drawn = dgl.sampling.sample_neighbors(self._graph, {self._relation[2]: nodes}, fanout)
        edges: np.ndarray = drawn.edata[dgl.EID].numpy()
        return edges

    @cached_property
    def _graph(self) -> Any:
        """The edges as compressed columns, sharing memory with `source`.

        Other formats would be sorted by DGL in an order that depends on the number of threads, and draws depend on the
        order of edges.
        """
        # In the item graph destinations and sources are one node type, so the graph has all of them.
        sizes = {self._relation[2]: len(self._indptr) - 1} | {self._relation[0]: self._sources}
        dtype = self._source.dtype
        indptr = np.full(sizes[self._relation[2]] + 1, len(self._source), dtype)
        indptr[: len(self._indptr)] = self._indptr
        no_ids = torch.from_numpy(np.empty(0, dtype))  # an edge's number is its position
        columns = torch.from_numpy(indptr), torch.from_numpy(self._source), no_ids
        return _dgl().heterograph({self._relation: ("csc", columns)}, sizes)


def _dgl() -> Any:
    """DGL, imported on first use because that takes over a second."""
    os.environ.setdefault("DGLBACKEND", "pytorch")  # otherwise the import writes a file into the home folder
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
    # Torch sets a thread's OpenMP count on first use, and DGL shares that setting, so torch must be first.
    torch.get_num_threads()
    _dgl().utils.set_num_threads(1)


def _fingerprint() -> list[int]:
    dgl = _dgl()
    star = dgl.graph((torch.arange(1, 65), torch.zeros(64, dtype=torch.int64)))
    dgl.seed(1000)
    return sorted(dgl.sampling.sample_neighbors(star, torch.tensor([0]), 8).edata[dgl.EID].tolist())
