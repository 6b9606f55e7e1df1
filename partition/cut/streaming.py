"""Cuts a graph that METIS cannot hold: a streaming partitioner, which places one block of nodes at a time.

A node goes to the part with most of its neighbours, minus a price for the load of that part, as in LDG (Stanton and
Kliot, KDD 2012) and Fennel (Tsourakakis et al., WSDM 2014). Further passes correct the early choices, as in restreaming
(Nishimura and Ugander, KDD 2013). Three things differ. Users and items are balanced separately, and so are the
interactions on either side. The price depends on what a node adds: for one with few interactions on the number of
nodes, for one with many on the number of interactions; with a single price, parts fill up with one kind. And a whole
block is placed at once, in NumPy, with the loads at its start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from partition import columns_on_disk as blocks

METIS_EDGES = 20_000_000  # interactions up to which AUTO takes METIS: about 5 GiB and 5 minutes
SLACK = 1.03  # load at which a part counts as full, per mean load
PRICE, OVERPRICE = 2.0, 30.0  # of the load up to full and above it, against a share of neighbours of 0 to 1
BLOCKS = 50  # least number of blocks per part in which a side is placed
PASSES, LEAST_GAIN = 20, 0.001  # stops when a pass gains at most this share of the edges


@dataclass
class _Side:
    """Users or items: CSR of their interactions, the part of each, and the load of every part."""

    indptr: np.ndarray  # [nodes + 1] int64
    other: np.ndarray  # [E] int32 or int64 node on the other side
    part: np.ndarray  # [nodes] int32, -1 before it is placed
    nodes: np.ndarray  # int64 nodes that have an interaction
    load: np.ndarray  # [2, P] nodes and interactions
    full: np.ndarray  # [2, 1] load at which a part is full

    @classmethod
    def of(cls, own: np.ndarray, other: np.ndarray, count: int, parts: int) -> _Side:
        degree = blocks.counts(own, count)
        sorted_other = np.empty(len(own), blocks.index_type(int(other.max(initial=0)) + 1))
        indptr = blocks.by_node(own, other, sorted_other, degree)
        nodes = np.flatnonzero(degree)
        full = np.array([[len(nodes)], [len(own)]]) / parts * SLACK
        part = np.full(count, -1, np.int32)
        return cls(indptr, sorted_other, part, nodes, np.zeros((2, parts)), full)

    def neighbours(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of `nodes` [n]: the lengths of their lists [n], and the lists concatenated."""
        length = self.indptr[nodes + 1] - self.indptr[nodes]
        start = np.repeat(self.indptr[nodes] - np.cumsum(length) + length, length)
        return length, self.other[start + np.arange(len(start))]

    def place(self, nodes: np.ndarray, others: np.ndarray) -> None:
        """Places `nodes` [n] again, by the loads without them; `others` are the parts of the other side."""
        parts = self.load.shape[1]
        length, neighbour = self.neighbours(nodes)
        part = others[neighbour]
        row = np.repeat(np.arange(len(nodes)), length)[part >= 0]
        inside = np.bincount(row * parts + part[part >= 0], minlength=len(nodes) * parts).reshape(-1, parts)
        placed = self.part[nodes] >= 0
        self._add(self.part[nodes][placed], length[placed], -1)
        fill = self.load / self.full
        price = PRICE * fill + OVERPRICE * np.maximum(fill - 1, 0)
        by_edges = (length / (length + self.full[1] / self.full[0]))[:, None]
        gain = inside / length[:, None] - (1 - by_edges) * price[0] - by_edges * price[1]
        self.part[nodes] = gain.argmax(axis=1)
        self._add(self.part[nodes], length, 1)

    def _add(self, part: np.ndarray, length: np.ndarray, sign: int) -> None:
        parts = self.load.shape[1]
        self.load[0] += sign * np.bincount(part, minlength=parts)
        self.load[1] += sign * np.bincount(part, weights=length, minlength=parts)


def stream_parts(
    user: np.ndarray, item: np.ndarray, users: int, items: int, parts: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Parts of the users and of the items that have an interaction; -1 for the others.

    Args:
        user: [E] user index, unique pairs.
        item: [E] item index.
        users: number of users.
        items: number of items.
        parts: P.
        seed: of the order in which nodes come.

    Returns:
        [users] and [items] int32. Memory: both orders of the interactions, 4 bytes an entry below 2**31 of them, and
        [nodes] arrays; time: linear in the interactions, per pass.
    """
    rng = np.random.default_rng(seed)
    by_user, by_item = _Side.of(user, item, users, parts), _Side.of(item, user, items, parts)
    step = max(1, min(len(by_user.nodes), len(by_item.nodes)) // (parts * BLOCKS))
    # First users come in any order, and an item follows its first user.
    for nodes in _blocks(by_user.nodes, step, rng, "parts, first pass"):
        by_user.place(nodes, by_item.part)
        touched = blocks.distinct(by_user.neighbours(nodes)[1])
        touched = touched[by_item.part[touched] < 0]
        if len(touched):
            by_item.place(touched, by_user.part)
    kept, inside = (by_user.part.copy(), by_item.part.copy()), _inside(by_user, by_item)
    for number in range(1, PASSES + 1):
        for side, other in ((by_item, by_user), (by_user, by_item)):
            for nodes in _blocks(side.nodes, step, rng, f"parts, pass {number}"):
                side.place(nodes, other.part)
        before, now = inside, _inside(by_user, by_item)
        if now > inside:
            kept, inside = (by_user.part.copy(), by_item.part.copy()), now
        if now < before + LEAST_GAIN:
            break
    return kept


def _blocks(nodes: np.ndarray, step: int, rng: np.random.Generator, title: str) -> tqdm[np.ndarray]:
    order = rng.permutation(nodes)
    blocks = [order[begin : begin + step] for begin in range(0, len(order), step)]
    return tqdm(blocks, desc=title, unit="block", disable=None, leave=False)


def _inside(by_user: _Side, by_item: _Side) -> float:
    """Share of the interactions with both ends in one part."""
    total, degree = 0, np.diff(by_user.indptr)
    for rows in blocks.slices_of_nodes(degree):
        begin, end = np.searchsorted(by_user.indptr, (rows.start, rows.stop), side="right") - 1
        part = np.repeat(by_user.part[begin:end], degree[begin:end])
        total += int(np.count_nonzero(by_item.part[by_user.other[rows]] == part))
    return total / len(by_user.other)
