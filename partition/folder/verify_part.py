"""What `verify` checks of one part: its files against each other, the manifest and all nodes' degrees."""

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
    read_graph,
    read_similar,
    read_table,
)
from partition.folder.layout import ITEM_TO_USER, USER_TO_ITEM
from partition.folder.manifest import Manifest

FEATURE_BLOCK = 1 << 24  # feature values looked at in one go
WEIGHT_TOLERANCE = 1e-5  # of an item's weights in the item graph, whose sum is 1 up to float32


@dataclass
class Folder:
    """A prepared folder under examination, with what is known of all its nodes."""

    root: Path
    manifest: Manifest
    degree: dict[str, np.ndarray] = field(default_factory=dict)  # kind -> [rows] int64; -1 for padding

    @property
    def parts(self) -> range:
        """Numbers of the parts."""
        return range(self.manifest.num_parts)

    def file(self, part: int, name: str) -> Path:
        """Path of one of a part's files."""
        return layout.part_dir(self.root, part) / name

    def stride(self, kind: str) -> int:
        """Rows a part of users or of items."""
        return self.manifest.user_stride if kind == "user" else self.manifest.item_stride

    def size(self, part: int, kind: str) -> int:
        """Nodes of a part."""
        return self.manifest.parts[part].users if kind == "user" else self.manifest.parts[part].items

    def own(self, part: int, kind: str) -> np.ndarray:
        """Global rows of the part's own nodes."""
        return part * self.stride(kind) + np.arange(self.size(part, kind), dtype=np.int64)


def no_row(wrong: np.ndarray, path: Path, message: str, what: str = "row") -> None:
    """Refuses the first entry that is `wrong` ([n] bool); rows count from 0."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{path}: {what} {row}: {message}")


def degrees(folder: Folder, part: int) -> None:
    """users.arrow and items.arrow: one record a node, trained ones first."""
    sizes = folder.manifest.parts[part]
    for kind, name, active in (("user", layout.USERS, sizes.active_users), ("item", layout.ITEMS, sizes.active_items)):
        path = folder.file(part, name)
        degree = read_table(path, node_schema(folder.manifest, kind))["train_degree"].to_numpy()
        size = folder.size(part, kind)
        require(len(degree) == size, path, f"{len(degree)} rows; the manifest says {size}")
        no_row(degree < 0, path, "train_degree is negative")
        trained = np.arange(size) < active
        no_row((degree > 0) != trained, path, f"the {active} rows with a train_degree above 0 have to come first")
        folder.degree[kind][part * folder.stride(kind) :][:size] = degree
        if kind == "user":
            require(degree.sum() == sizes.train, path, f"train_degree sums to {degree.sum()}, not {sizes.train}")


def user_item(folder: Folder, part: int) -> None:
    """graph.npz holds every in-edge of the part's nodes and the halo they need; the held-out pairs are others."""
    path, sizes = folder.file(part, layout.GRAPH), folder.manifest.parts[part]
    graph = read_graph(path)
    for kind, halo in (("user", sizes.halo_users), ("item", sizes.halo_items)):
        _nodes(folder, part, path, graph, kind, halo)
    for relation in (ITEM_TO_USER, USER_TO_ITEM):
        _edges(folder, part, path, graph, relation)
    user, item = interactions(graph, ITEM_TO_USER)
    require(len(user) == sizes.train, path, f"{len(user)} edges into users; the manifest says {sizes.train}")
    inner = int((item // folder.stride("item") == part).sum())
    require(inner == sizes.inner_edges, path, f"{inner} edges inside the part, not {sizes.inner_edges}")
    seen = {"training": pairs_of(folder, user, item)}
    for split, name in layout.HELD_OUT.items():
        seen[split] = _held_out(folder, part, folder.file(part, name), getattr(sizes, split), seen)


def _nodes(folder: Folder, part: int, path: Path, graph: Graph, kind: str, halo: int) -> None:
    row, own = graph.row[kind], folder.own(part, kind)
    require(len(row) == len(own) + halo, path, f"{len(row)} {kind} nodes, not {len(own)} and {halo} of the halo")
    node, remote = f"{kind} node", row[len(own) :]
    no_row(row[: len(own)] != own, path, "is not the row of this part at this offset", node)
    wrong = np.zeros(len(row), bool)
    wrong[len(own) :] = (remote // folder.stride(kind) == part) | ~_exists(folder, remote, kind)
    no_row(wrong, path, "is not a node of another part", node)
    wrong[len(own) + 1 :] = np.diff(remote) <= 0
    no_row(wrong, path, "the halo does not ascend by row", node)
    no_row(graph.degree[kind] != folder.degree[kind][row], path, "its degree is not its part's train_degree", node)


def _edges(folder: Folder, part: int, path: Path, graph: Graph, relation: Relation) -> None:
    source_kind, name, kind = relation
    source, destination = graph.edges[relation]
    own, edge = folder.own(part, kind), f"{name} edge"
    no_row(destination >= len(own), path, f"points to a {kind} of another part", edge)
    row = graph.row[source_kind][source]
    ascending = (np.diff(destination) > 0) | ((np.diff(destination) == 0) & (np.diff(row) > 0))
    no_row(np.concatenate([[False], ~ascending]), path, "is not behind the one before (or is the same)", edge)
    no_row(
        np.bincount(destination, minlength=len(own)) != folder.degree[kind][own],
        path,
        f"the number of {name} edges is not its train_degree",
        f"{kind} node",
    )
    used = np.zeros(len(graph.row[source_kind]), bool)
    used[source] = True
    used[: folder.size(part, source_kind)] = True
    no_row(~used, path, "is in the halo, but no edge needs it", f"{source_kind} node")


def interactions(graph: Graph, relation: Relation) -> tuple[np.ndarray, np.ndarray]:
    """Global (user, item) rows of the edges of one direction."""
    source, destination = graph.edges[relation]
    rows = {relation[0]: graph.row[relation[0]][source], relation[2]: graph.row[relation[2]][destination]}
    return rows["user"], rows["item"]


def pairs_of(folder: Folder, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """[n] one number for each pair of global rows."""
    return user * folder.manifest.item_rows + item


def _exists(folder: Folder, row: np.ndarray, kind: str) -> np.ndarray:
    """[n] bool: the global row is in range and no padding."""
    degree = folder.degree[kind]
    return (row >= 0) & (row < len(degree)) & (degree[np.clip(row, 0, len(degree) - 1)] >= 0)


def _held_out(folder: Folder, part: int, path: Path, count: int, seen: dict[str, np.ndarray]) -> np.ndarray:
    table = read_table(path, PAIR_SCHEMA)
    user, item = table["user"].to_numpy(), table["item"].to_numpy()
    require(len(user) == count, path, f"{len(user)} rows; the manifest says {count}")
    offset = user - part * folder.stride("user")
    no_row((offset < 0) | (offset >= folder.size(part, "user")), path, "the user is not of this part")
    no_row(~_exists(folder, item, "item"), path, "there is no such item row")
    no_row(folder.degree["user"][user] == 0, path, "the user has no training interaction")
    if folder.manifest.split == "cold_items":
        no_row(folder.degree["item"][item] > 0, path, "the item is not cold: it has training interactions")
    pairs = pairs_of(folder, user, item)
    no_row(np.concatenate([[False], np.diff(pairs) <= 0]), path, "is not behind the one before (or is the same)")
    for split, others in seen.items():
        no_row(np.isin(pairs, others, assume_unique=True), path, f"is a {split} interaction as well")
    return pairs


def item_graph(folder: Folder, part: int) -> None:
    """item_graph.npz: rows of weights that sum to 1, the item itself among its neighbours."""
    path, own = folder.file(part, layout.ITEM_GRAPH), folder.own(part, "item")
    similar = read_similar(path)
    indptr, neighbour, weight = similar.indptr, similar.neighbour, similar.weight
    require(len(indptr) == len(own) + 1, path, f"indptr: {len(indptr)} numbers for {len(own)} items")
    whole = indptr[0] == 0 and indptr[-1] == len(neighbour) == len(weight)
    require(bool(whole), path, "indptr: does not span the neighbours and weights")
    no_row(np.diff(indptr) < 1, path, "has no neighbours", "item")
    item = np.repeat(np.arange(len(own)), np.diff(indptr))
    edge = "edge"
    no_row(~_exists(folder, neighbour, "item"), path, "its neighbour is no item row", edge)
    ascending = (np.diff(item) > 0) | (np.diff(neighbour) > 0)
    no_row(np.concatenate([[False], ~ascending]), path, "its neighbour is not behind the one before", edge)
    no_row(~(np.isfinite(weight) & (weight > 0)), path, "its weight is not a number above 0", edge)
    total = np.add.reduceat(weight.astype(np.float64), indptr[:-1])
    no_row(np.abs(total - 1) > WEIGHT_TOLERANCE, path, "its weights do not sum to 1", "item")
    itself = np.bincount(item[neighbour == own[item]], minlength=len(own))
    no_row(itself != 1, path, "is not its own neighbour", "item")


def features(folder: Folder, part: int) -> None:
    """features-*.npy: a finite row an item."""
    for modality in folder.manifest.modalities:
        path = folder.file(part, layout.features_file(modality.name))
        values = open_features(path, modality, folder.size(part, "item"))
        step = max(1, FEATURE_BLOCK // modality.dim)
        for begin in range(0, len(values), step):
            finite = np.isfinite(values[begin : begin + step]).all(axis=1)
            wrong = np.concatenate([np.zeros(begin, bool), ~finite])
            no_row(wrong, path, "not finite")
