"""The row space of a prepared folder, and the interactions grouped by part, in files.

Shapes: n interactions, E edges of a part; rows are numbers of the row space (partition.folder.layout).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from partition import columns_on_disk as blocks
from partition.cut.assign import Assignment
from partition.folder import layout
from partition.folder.arrays import Graph, Weights
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Dataset

Pairs = tuple[np.ndarray, np.ndarray]
LABELS = {"validation": VALIDATION, "test": TEST}  # held-out split -> its number in Dataset.split


@dataclass(frozen=True)
class RowSpace:
    """The rows of one node type: row = part * stride + offset; in a part trained nodes first, then by index."""

    row: np.ndarray  # [nodes] int64
    members: list[np.ndarray]  # per part: node indices in offset order
    stride: int
    degree: np.ndarray  # [nodes] int64 training interactions, by node index

    @classmethod
    def of(cls, part: np.ndarray, degree: np.ndarray, parts: int) -> RowSpace:
        """Numbers the nodes.

        Args:
            part: [nodes] part of each.
            degree: [nodes] number of training interactions of each.
            parts: how many there are.
        """
        order = np.lexsort((np.arange(len(part)), degree == 0, part))
        members = np.split(order, np.searchsorted(part[order], np.arange(1, parts)))
        stride = max(len(nodes) for nodes in members)
        row = np.empty(len(part), np.int64)
        for number, nodes in enumerate(members):
            row[nodes] = number * stride + np.arange(len(nodes))
        return cls(row, members, stride, degree)

    @property
    def end(self) -> int:
        """One more than the largest row, padding included."""
        return len(self.members) * self.stride


class Edges:
    """Training interactions grouped by the user's part and by the item's part, held-out ones by the user's part.

    Args:
        dataset: the interactions.
        assignment: the part of every node.
        folder: for the files; None stands for the system's folder of temporary files.
    """

    def __init__(self, dataset: Dataset, assignment: Assignment, folder: Path | None) -> None:
        self.parts = int(assignment.user_part.max()) + 1
        user_degree = np.zeros(len(dataset.user_ids), np.int64)
        item_degree = np.zeros(len(dataset.item_ids), np.int64)
        # By node index; empty without weights. Summed in the order of the data set, so that the cut does not matter.
        self._weighted_degree: dict[str, np.ndarray] = {}
        if dataset.weight is not None:
            self._weighted_degree = {"user": np.zeros(len(user_degree)), "item": np.zeros(len(item_degree))}
        held_out = {split: np.zeros(self.parts, np.int64) for split in LABELS}
        for rows in blocks.slices(len(dataset.user)):
            user, item, split = dataset.user[rows], dataset.item[rows], dataset.split[rows]
            np.add.at(user_degree, user[split == TRAIN], 1)
            np.add.at(item_degree, item[split == TRAIN], 1)
            if dataset.weight is not None:
                weight = dataset.weight[rows][split == TRAIN].astype(np.float64)
                np.add.at(self._weighted_degree["user"], user[split == TRAIN], weight)
                np.add.at(self._weighted_degree["item"], item[split == TRAIN], weight)
            for name, code in LABELS.items():
                held_out[name] += np.bincount(assignment.user_part[user[split == code]], minlength=self.parts)
        self.users = RowSpace.of(assignment.user_part, user_degree, self.parts)
        self.items = RowSpace.of(assignment.item_part, item_degree, self.parts)
        kinds = blocks.index_type(self.users.end), blocks.index_type(self.items.end)
        weights = [] if dataset.weight is None else [np.float32]
        self._by_user, self._by_item = (
            blocks.Buckets([int(space.degree[nodes].sum()) for nodes in space.members], [*types, *weights], folder)
            for space, types in ((self.users, kinds), (self.items, kinds[::-1]))
        )
        self._held_out = {split: blocks.Buckets(sizes, kinds, folder) for split, sizes in held_out.items()}
        whole = list(blocks.slices(len(dataset.user)))
        for rows in tqdm(whole, desc="interactions to their parts", unit="block", disable=None, leave=False):
            user, item, split = dataset.user[rows], dataset.item[rows], dataset.split[rows]
            pair = self.users.row[user], self.items.row[item]
            train = split == TRAIN
            weight = [] if dataset.weight is None else [dataset.weight[rows][train]]
            self._by_user.add(assignment.user_part[user[train]], pair[0][train], pair[1][train], *weight)
            self._by_item.add(assignment.item_part[item[train]], pair[1][train], pair[0][train], *weight)
            for name, code in LABELS.items():
                kept = split == code
                self._held_out[name].add(assignment.user_part[user[kept]], pair[0][kept], pair[1][kept])

    @property
    def largest(self) -> int:
        """Training interactions with a user or an item of one part, of the part that has most."""
        sizes = zip(self._by_user.sizes, self._by_item.sizes, strict=True)
        return max(users + items for users, items in sizes)

    def held_out(self, split: str, part: int) -> Pairs:
        """Returns the (user, item) rows [n] of the interactions of the part's users in a split, sorted by both."""
        user, item, _ = _sorted(self._held_out[split].rows(part), part * self.users.stride, self.items.end)
        return user, item

    def graph(self, part: int) -> Graph:
        """Returns the in-edges of a part's nodes; nodes are the part's own in offset order, then the halo by row."""
        by_user = _sorted(self._by_user.rows(part), part * self.users.stride, self.items.end)
        by_item = _sorted(self._by_item.rows(part), part * self.items.stride, self.users.end)
        nodes, edges = {}, {}
        for kind, space, sources in (("item", self.items, by_user[1]), ("user", self.users, by_item[1])):
            own = part * space.stride + np.arange(len(space.members[part]), dtype=np.int64)
            remote = sources // space.stride != part
            far = sources[remote]
            halo = blocks.distinct(far)
            local = sources - part * space.stride
            local[remote] = len(own) + blocks.positions(far, halo, space.end)
            nodes[kind], edges[kind] = np.concatenate([own, halo]), local
        to_user = edges["item"], by_user[0] - part * self.users.stride
        to_item = edges["user"], by_item[0] - part * self.items.stride
        node = {kind: _nodes(space, nodes[kind]) for kind, space in (("item", self.items), ("user", self.users))}
        weights = None
        if by_user[2] is not None and by_item[2] is not None:
            weights = Weights(
                {layout.ITEM_TO_USER: by_user[2], layout.USER_TO_ITEM: by_item[2]},
                {kind: degree[node[kind]] for kind, degree in self._weighted_degree.items()},
            )
        return Graph(
            nodes,
            {
                "item": self.items.degree[node["item"]].astype(np.int32),
                "user": self.users.degree[node["user"]].astype(np.int32),
            },
            {layout.ITEM_TO_USER: to_user, layout.USER_TO_ITEM: to_item},
            weights,
        )


def _sorted(columns: Sequence[np.ndarray], first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Sorts unique pairs by (row, other), and their weights with them.

    Args:
        columns: rows [n], others [n] and, if there are weights, their weights [n].
        first: every row is at least that.
        end: every `other` is below that.

    Returns:
        Rows and others as int64, and the weights, if any.
    """
    row, other, *weight = columns
    key = (row.astype(np.int64) - first) * end + other
    ordered = None
    if weight:
        order = np.argsort(key)
        key, ordered = key[order], weight[0][order]
    else:
        key.sort()
    low, high = np.divmod(key, end)
    return low + first, high, ordered


def _nodes(space: RowSpace, rows: np.ndarray) -> np.ndarray:
    """Returns the [n] int64 indices of nodes given by row."""
    node = np.empty(len(rows), np.int64)
    part, offset = np.divmod(rows, space.stride)
    for number in np.unique(part):
        node[part == number] = space.members[number][offset[part == number]]
    return node
