"""What `verify` checks of one part: its files against each other, the manifest and the degrees of all nodes.

Shapes: n rows of a file or nodes, E edges; rows without "global" are numbers within a file and count from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from partition.errors import InputError, require
from partition.folder import layout
from partition.folder.arrays import (
    PAIR_SCHEMA,
    Graph,
    Relation,
    node_schema,
    open_features,
    open_missing,
    read_graph,
    read_similar,
    read_table,
)
from partition.folder.layout import ITEM_TO_USER, USER_TO_ITEM
from partition.folder.manifest import Manifest

FEATURE_VALUES = 1 << 24  # feature values checked at a time
WEIGHT_TOLERANCE = 1e-5  # of the sum of an item's weights in the item graph, which is 1 up to float32
DEGREE_TOLERANCE = 1e-9  # of a weighted degree, relative: a sum in float64 depends on the order
_ASCENDS = "is not behind the one before (or is the same)"


@dataclass
class Folder:
    """A prepared folder being verified, with the degrees of all its nodes."""

    root: Path
    manifest: Manifest
    degree: dict[str, np.ndarray] = field(default_factory=dict)  # kind -> [rows] int64 by global row; -1 for padding
    weighted_degree: dict[str, np.ndarray] = field(default_factory=dict)  # kind -> [rows] float64, if there are weights

    @property
    def parts(self) -> range:
        """Numbers of the parts."""
        return range(self.manifest.num_parts)

    def file(self, part: int, name: str) -> Path:
        """Returns the path of one of a part's files."""
        return layout.part_dir(self.root, part) / name

    def stride(self, kind: str) -> int:
        """Returns the rows per part of users or of items."""
        return self.manifest.user_stride if kind == "user" else self.manifest.item_stride

    def size(self, part: int, kind: str) -> int:
        """Returns the number of nodes of a part."""
        return self.manifest.parts[part].users if kind == "user" else self.manifest.parts[part].items

    def own(self, part: int, kind: str) -> np.ndarray:
        """Returns the global rows of the part's own nodes."""
        return part * self.stride(kind) + np.arange(self.size(part, kind), dtype=np.int64)

    def exists(self, row: np.ndarray, kind: str) -> np.ndarray:
        """Returns whether global rows are in range and not padding: [n] bool."""
        degree = self.degree[kind]
        return (row >= 0) & (row < len(degree)) & (degree[np.clip(row, 0, len(degree) - 1)] >= 0)


@dataclass(frozen=True)
class _File:
    """A file being verified, and the code of the errors found in it."""

    path: Path
    code: str

    def require(self, right: bool, message: str) -> None:
        """Refuses the file unless `right`."""
        require(right, self.path, message, self.code)

    def no_row(self, wrong: np.ndarray, message: str, what: str = "row", begin: int = 0) -> None:
        """Refuses the first entry that is `wrong` ([n] bool), the first of which is entry `begin` of the file."""
        if wrong.any():
            raise InputError(f"{self.path}: {what} {begin + int(np.argmax(wrong))}: {message}", self.code)


def degrees(folder: Folder, part: int) -> None:
    """Checks users.arrow and items.arrow: one record per node, trained nodes first.

    Raises:
        InputError: `prepared.degrees`, or as `read_table`.
    """
    sizes = folder.manifest.parts[part]
    for kind, name, active in (("user", layout.USERS, sizes.active_users), ("item", layout.ITEMS, sizes.active_items)):
        file = _File(folder.file(part, name), "prepared.degrees")
        degree = read_table(file.path, node_schema(folder.manifest, kind))["train_degree"].to_numpy()
        size = folder.size(part, kind)
        file.require(len(degree) == size, f"{len(degree)} rows; the manifest says {size}")
        file.no_row(degree < 0, "train_degree is negative")
        trained = np.arange(size) < active
        file.no_row((degree > 0) != trained, f"the {active} rows with a train_degree above 0 have to come first")
        folder.degree[kind][part * folder.stride(kind) :][:size] = degree
        if kind == "user":
            file.require(degree.sum() == sizes.train, f"train_degree sums to {degree.sum()}, not {sizes.train}")


def user_item(folder: Folder, part: int) -> None:
    """Checks graph.npz and the held-out pairs.

    The graph holds every in-edge of the part's nodes and the halo they need; no held-out pair is a training edge.

    Raises:
        InputError: `prepared.graph`, `prepared.held_out`, or as `read_graph` and `read_table`.
    """
    file, sizes = _File(folder.file(part, layout.GRAPH), "prepared.graph"), folder.manifest.parts[part]
    graph = read_graph(file.path, folder.manifest.weighted)
    for kind, halo in (("user", sizes.halo_users), ("item", sizes.halo_items)):
        _nodes(folder, part, file, graph, kind, halo)
    for relation in (ITEM_TO_USER, USER_TO_ITEM):
        _edges(folder, part, file, graph, relation)
        if graph.weights is not None:
            _weights(folder, part, file, graph, relation)
    user, item = interactions(graph, ITEM_TO_USER)
    file.require(len(user) == sizes.train, f"{len(user)} edges into users; the manifest says {sizes.train}")
    inner = int((item // folder.stride("item") == part).sum())
    file.require(inner == sizes.inner_edges, f"{inner} edges inside the part, not {sizes.inner_edges}")
    seen = {"training": pairs_of(folder, user, item)}
    for split, name in layout.HELD_OUT.items():
        held_out = _File(folder.file(part, name), "prepared.held_out")
        seen[split] = _held_out(folder, part, held_out, getattr(sizes, split), seen)


def _nodes(folder: Folder, part: int, file: _File, graph: Graph, kind: str, halo: int) -> None:
    row, own = graph.row[kind], folder.own(part, kind)
    file.require(len(row) == len(own) + halo, f"{len(row)} {kind} nodes, not {len(own)} and {halo} of the halo")
    node, begin, remote = f"{kind} node", len(own), row[len(own) :]
    file.no_row(row[:begin] != own, "is not the row of this part at this offset", node)
    elsewhere = (remote // folder.stride(kind) != part) & folder.exists(remote, kind)
    file.no_row(~elsewhere, "is not a node of another part", node, begin)
    file.no_row(np.diff(remote) <= 0, "the halo does not ascend by row", node, begin + 1)
    file.no_row(graph.degree[kind] != folder.degree[kind][row], "its degree is not its part's train_degree", node)


def _edges(folder: Folder, part: int, file: _File, graph: Graph, relation: Relation) -> None:
    source_kind, name, kind = relation
    source, destination = graph.edges[relation]
    own, edge = folder.own(part, kind), f"{name} edge"
    file.no_row(destination >= len(own), f"points to a {kind} of another part", edge)
    row = graph.row[source_kind][source]
    ascending = (np.diff(destination) > 0) | ((np.diff(destination) == 0) & (np.diff(row) > 0))
    file.no_row(~ascending, _ASCENDS, edge, 1)
    degree = np.bincount(destination, minlength=len(own))
    message = f"the number of {name} edges is not its train_degree"
    file.no_row(degree != folder.degree[kind][own], message, f"{kind} node")
    used = np.zeros(len(graph.row[source_kind]), bool)
    used[source] = True
    used[: folder.size(part, source_kind)] = True
    file.no_row(~used, "is in the halo, but no edge needs it", f"{source_kind} node")


def _weights(folder: Folder, part: int, file: _File, graph: Graph, relation: Relation) -> None:
    """Checks the weights of a relation and the weighted degrees that they add up to, which it notes in `folder`."""
    assert graph.weights is not None
    _, name, kind = relation
    weight, own = graph.weights.edge[relation], folder.own(part, kind)
    file.no_row(~(np.isfinite(weight) & (weight > 0)), "its weight is not a number above 0", f"{name} edge")
    stated = graph.weights.degree[kind][: len(own)]
    total = np.bincount(graph.edges[relation][1], weight, minlength=len(own))
    wrong = ~(np.abs(stated - total) <= DEGREE_TOLERANCE * total)  # true for nan as well
    file.no_row(wrong, f"its weighted degree is not the sum of its {name} edges' weights", f"{kind} node")
    folder.weighted_degree[kind][own] = stated


def halo_weights(folder: Folder, part: int, graph: Graph) -> None:
    """Checks that the weighted degrees of a part's halo nodes are those in their own parts.

    Raises:
        InputError: `prepared.graph`.
    """
    if graph.weights is None:
        return
    file = _File(folder.file(part, layout.GRAPH), "prepared.graph")
    for kind, degree in graph.weights.degree.items():
        wrong = degree != folder.weighted_degree[kind][graph.row[kind]]
        file.no_row(wrong, "its weighted degree is not that in its own part", f"{kind} node")


def interactions(graph: Graph, relation: Relation) -> tuple[np.ndarray, np.ndarray]:
    """Returns the global (user, item) rows [E] of the edges of one direction."""
    source, destination = graph.edges[relation]
    rows = {relation[0]: graph.row[relation[0]][source], relation[2]: graph.row[relation[2]][destination]}
    return rows["user"], rows["item"]


def pairs_of(folder: Folder, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Returns one number for each pair of global rows: [n] int64."""
    return user * folder.manifest.item_rows + item


def _held_out(folder: Folder, part: int, file: _File, count: int, seen: dict[str, np.ndarray]) -> np.ndarray:
    """Checks the pairs of one split; `seen` holds those of other splits by name. Returns the pairs as numbers."""
    table = read_table(file.path, PAIR_SCHEMA)
    user, item = table["user"].to_numpy(), table["item"].to_numpy()
    file.require(len(user) == count, f"{len(user)} rows; the manifest says {count}")
    offset = user - part * folder.stride("user")
    file.no_row((offset < 0) | (offset >= folder.size(part, "user")), "the user is not of this part")
    file.no_row(~folder.exists(item, "item"), "there is no such item row")
    file.no_row(folder.degree["user"][user] == 0, "the user has no training interaction")
    if folder.manifest.split == "cold_items":
        file.no_row(folder.degree["item"][item] > 0, "the item is not cold: it has training interactions")
    pairs = pairs_of(folder, user, item)
    file.no_row(np.diff(pairs) <= 0, _ASCENDS, begin=1)
    for split, others in seen.items():
        file.no_row(np.isin(pairs, others, assume_unique=True), f"is a {split} interaction as well")
    return pairs


def item_graph(folder: Folder, part: int) -> None:
    """Checks item_graph.npz: the weights of an item sum to 1, and the item itself is among its neighbours.

    Raises:
        InputError: `prepared.item_graph`, or as `read_similar`.
    """
    file, own = _File(folder.file(part, layout.ITEM_GRAPH), "prepared.item_graph"), folder.own(part, "item")
    similar = read_similar(file.path)
    indptr, neighbour, weight = similar.indptr, similar.neighbour, similar.weight
    file.require(len(indptr) == len(own) + 1, f"indptr: {len(indptr)} numbers for {len(own)} items")
    whole = indptr[0] == 0 and indptr[-1] == len(neighbour) == len(weight)
    file.require(bool(whole), "indptr: does not span the neighbours and weights")
    file.no_row(np.diff(indptr) < 1, "has no neighbours", "item")
    item = np.repeat(np.arange(len(own)), np.diff(indptr))
    file.no_row(~folder.exists(neighbour, "item"), "its neighbour is no item row", "edge")
    ascending = (np.diff(item) > 0) | (np.diff(neighbour) > 0)
    file.no_row(~ascending, "its neighbour is not behind the one before", "edge", 1)
    file.no_row(~(np.isfinite(weight) & (weight > 0)), "its weight is not a number above 0", "edge")
    total = np.add.reduceat(weight.astype(np.float64), indptr[:-1])
    file.no_row(np.abs(total - 1) > WEIGHT_TOLERANCE, "its weights do not sum to 1", "item")
    itself = np.bincount(item[neighbour == own[item]], minlength=len(own))
    file.no_row(itself != 1, "is not its own neighbour", "item")


def features(folder: Folder, part: int) -> None:
    """Checks features-NAME.npy: one row of finite numbers per item; zeros where missing-NAME.npy, if any, is true.

    Raises:
        InputError: `prepared.features`, or as `open_features`.
    """
    for modality in folder.manifest.modalities:
        file = _File(folder.file(part, layout.features_file(modality.name)), "prepared.features")
        values = open_features(file.path, modality, folder.size(part, "item"))
        missing = np.zeros(len(values), bool)
        if modality.masked:
            missing = open_missing(folder.file(part, layout.missing_file(modality.name)), len(values))
        rows = max(1, FEATURE_VALUES // modality.dim)
        for begin in range(0, len(values), rows):
            finite = np.isfinite(values[begin : begin + rows]).all(axis=1)
            file.no_row(~finite, "not finite", begin=begin)
            filled = missing[begin : begin + rows] & values[begin : begin + rows].any(axis=1)
            file.no_row(filled, "is marked as missing, but is not zeros", begin=begin)
