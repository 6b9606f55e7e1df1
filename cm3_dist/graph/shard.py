"""A rank's share of the prepared folder: the parts that it owns, in one local row space.

A rank owns the parts [rank * P/W, (rank + 1) * P/W). Local row = global row - first own row. Padding rows are included
(no edges, zero features), so the arrays of a shard have the same rows as a table's shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from cm3_dist.errors import InputError
from cm3_dist.graph.csr_lists import CsrLists
from cm3_dist.graph.part_graph import SIMILAR, USER, Edges, PartGraph
from partition.errors import reading
from partition.folder import layout
from partition.folder.integrity import Level, check_manifest, check_parts, check_shared
from partition.folder.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Adjacency:
    """In-edges of this rank's rows, as CSR with global source rows."""

    indptr: np.ndarray  # [local rows + 1] int64
    source: np.ndarray  # [edges] int64, ascending within a row
    value: np.ndarray  # [edges] float32


@dataclass(frozen=True)
class Interactions:
    """Training interactions of this rank's users, as CSR. They stay in memory; adjacencies are built when needed."""

    indptr: np.ndarray  # [user rows + 1] int64
    item: np.ndarray  # [n] int32, or int64 if there are more item rows: global item rows, ascending within a user


@dataclass(frozen=True)
class HeldOut:
    """Held-out interactions of a split."""

    users: np.ndarray  # [n] int64 local rows, ascending
    relevant: CsrLists  # n lists of global item rows


@dataclass(frozen=True)
class Shard:
    """The parts of one rank. All arrays cover this rank's rows only, never the whole graph."""

    manifest: Manifest
    root: Path
    parts: range
    graphs: list[PartGraph]
    user_degree: np.ndarray  # [user rows] int64, full training graph
    item_degree: np.ndarray  # [item rows] int64
    is_item: np.ndarray  # [item rows] bool: False for padding
    interactions: Interactions
    held_out: dict[str, HeldOut]  # "validation", "test"

    @property
    def user_rows(self) -> int:
        """Number of local user rows: own parts times the stride."""
        return len(self.parts) * self.manifest.user_stride

    @property
    def item_rows(self) -> int:
        """Number of local item rows."""
        return len(self.parts) * self.manifest.item_stride

    @property
    def first_user(self) -> int:
        """Global row of local user row 0."""
        return self.parts.start * self.manifest.user_stride

    @property
    def first_item(self) -> int:
        """Global row of local item row 0."""
        return self.parts.start * self.manifest.item_stride

    def seen(self, users: np.ndarray) -> CsrLists:
        """Training items of the local users [n]: n lists of global rows."""
        found = CsrLists(torch.from_numpy(self.interactions.indptr), torch.from_numpy(self.interactions.item)).rows(
            users
        )
        return CsrLists(found.indptr, found.values.long())

    def adjacency(self, relation: tuple[str, str, str]) -> Adjacency:
        """In-edges of all local rows; built at every call."""
        if relation[2] == USER:
            first, rows = self.first_user, self.user_rows
        else:
            first, rows = self.first_item, self.item_rows
        return _adjacency([graph.edges(relation) for graph in self.graphs], first, rows)

    @property
    def item_weighted_degree(self) -> np.ndarray:
        """[item rows] float64: sum of the weights of an item's training interactions; the degree if all weigh 1."""
        degree = self.item_degree.astype(np.float64)
        for rows, graph in zip(np.split(degree, len(self.graphs)), self.graphs, strict=True):
            if graph.item_weighted_degree is not None:
                rows[: len(graph.item_weighted_degree)] = graph.item_weighted_degree
        return degree

    @cached_property
    def user_from_item(self) -> Adjacency:
        """In-edges of the users, built on first use and kept. Training does not use it."""
        return self.adjacency(layout.ITEM_TO_USER)

    @cached_property
    def similar(self) -> Adjacency:
        """The item graph, built on first use and kept."""
        return self.adjacency(SIMILAR)


def own_parts(manifest: Manifest, root: Path, rank: int, world_size: int) -> range:
    """The parts of `rank`.

    Raises:
        InputError: the number of parts is not a multiple of the number of ranks.
    """
    parts = manifest.num_parts
    if parts % world_size:
        fit = ", ".join(str(w) for w in range(1, parts + 1) if parts % w == 0)
        raise InputError(
            f"{root / layout.MANIFEST}: {parts} parts cannot be shared by {world_size} ranks; use "
            f"--nproc_per_node with one of {fit}, or python -m partition recut --parts {world_size}",
            "data.world-size",
        )
    share = parts // world_size
    return range(rank * share, (rank + 1) * share)


def load_shard(root: Path, rank: int, world_size: int, check: Level = "none") -> Shard:
    """Compares the files of a rank's parts with the manifest, then reads them.

    Args:
        root: the prepared folder.
        rank: whose parts.
        world_size: number of ranks.
        check: how files are compared, as in the setting `data.check`.

    Raises:
        InputError: a file is missing or damaged, or `world_size` does not divide the number of parts.
    """
    manifest = read_manifest(root)
    check_manifest(root, manifest)
    parts = own_parts(manifest, root, rank, world_size)
    check_parts(root, manifest, parts, check, torch.get_num_threads())
    if rank == 0:
        check_shared(root, manifest, check)
    users, items = manifest.user_stride, manifest.item_stride
    user_degree, item_degree = np.zeros(len(parts) * users, np.int64), np.zeros(len(parts) * items, np.int64)
    is_item = np.zeros(len(item_degree), bool)
    for index, part in enumerate(parts):
        folder, sizes = layout.part_dir(root, part), manifest.parts[part]
        user_degree[index * users :][: sizes.users] = column(folder / layout.USERS, "train_degree")
        item_degree[index * items :][: sizes.items] = column(folder / layout.ITEMS, "train_degree")
        is_item[index * items :][: sizes.items] = True
    graphs = [PartGraph(root, manifest, part) for part in parts]
    first_user = parts.start * users
    return Shard(
        manifest=manifest,
        root=root,
        parts=parts,
        graphs=graphs,
        user_degree=user_degree,
        item_degree=item_degree,
        is_item=is_item,
        interactions=_interactions(graphs, first_user, len(user_degree), manifest.item_rows),
        held_out={split: _held_out(root, parts, name, first_user) for split, name in layout.HELD_OUT.items()},
    )


def _interactions(graphs: list[PartGraph], first: int, users: int, item_rows: int) -> Interactions:
    kind = np.int32 if item_rows < 2**31 else np.int64
    adjacency = _adjacency([graph.edges(layout.ITEM_TO_USER) for graph in graphs], first, users)
    return Interactions(adjacency.indptr, adjacency.source.astype(kind))


def _adjacency(parts: list[Edges], first: int, rows: int) -> Adjacency:
    destination = np.concatenate([edges.destination for edges in parts]) - first
    source = np.concatenate([edges.source for edges in parts])
    value = np.concatenate([edges.value for edges in parts])
    order = np.lexsort((source, destination))
    indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(destination, minlength=rows), out=indptr[1:])
    return Adjacency(indptr, source[order], value[order])


def _held_out(root: Path, parts: range, name: str, first_user: int) -> HeldOut:
    files = [layout.part_dir(root, part) / name for part in parts]
    user = np.concatenate([column(path, "user") for path in files]).astype(np.int64)
    item = np.concatenate([column(path, "item") for path in files]).astype(np.int64)
    users, group = np.unique(user, return_inverse=True)
    return HeldOut(users - first_user, CsrLists.from_pairs(group, item, len(users)))


def column(path: Path, name: str) -> np.ndarray:
    """One column of an Arrow file.

    Raises:
        InputError: the file cannot be read, or has no such column.
    """
    with reading(path, "an Arrow file"), pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all().column(name).to_numpy()
