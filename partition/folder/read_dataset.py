"""Reads a prepared folder back into the data set and the item graph that it was written from.

Users and items are numbered as preparation numbered them: in the order of `order-users.npy` and `order-items.npy`, or
in the ascending order of their ids where there is no such file. Folders of schema version 3 and before never have them.

In memory are the ids, 8 bytes per user and item, and one part at a time; interactions and features go into files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from partition import columns_on_disk as blocks
from partition.errors import InputError, require
from partition.folder import layout
from partition.folder.arrays import (
    KINDS,
    PAIR_SCHEMA,
    node_schema,
    open_basis,
    open_features,
    open_missing,
    read_graph,
    read_similar,
    read_table,
)
from partition.folder.integrity import check_manifest, check_parts, check_shared
from partition.folder.manifest import Manifest, Modality, read_manifest
from partition.folder.order import node_rows, read_order, stride
from partition.folder.rows import LABELS
from partition.folder.write import FEATURE_ROWS
from partition.item_graph.graph import ItemGraph
from partition.transform.dataset import TRAIN, Dataset, Features

NODES = {"user": layout.USERS, "item": layout.ITEMS}  # kind -> file of a part
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # user number, item number, split, weight [n] each


@dataclass(frozen=True)
class PreparedFolder:
    """A prepared folder whose files are as they were written, with the numbers of its users and items."""

    root: Path
    manifest: Manifest
    ids: dict[str, pa.Array]  # kind -> [nodes] external ids by number
    number: dict[str, np.ndarray]  # kind -> [rows] int64: number of the node in each row, -1 in padding

    @classmethod
    def open(cls, root: Path) -> PreparedFolder:
        """Compares every file with its digest, and numbers users and items.

        Raises:
            InputError: as `read_manifest`, `check_manifest`, `check_parts` and `read_order`.
        """
        manifest = read_manifest(root)
        check_manifest(root, manifest)
        check_shared(root, manifest)
        for part in tqdm(range(manifest.num_parts), desc="comparing digests", unit="part", disable=None, leave=False):
            check_parts(root, manifest, [part], "full")
        ids, number = {}, {}
        for kind in KINDS:
            ids[kind], number[kind] = _numbered(root, manifest, kind)
        return cls(root, manifest, ids, number)

    def dataset(self, folder: Path) -> Dataset:
        """Returns the data set; its columns and matrices are unnamed files in `folder`, the bases those of the root."""
        manifest = self.manifest
        user, item, split, weight = self.interactions(folder)
        features = {}
        for modality in manifest.modalities:
            rows = manifest.items * modality.dim
            values = blocks.column(rows, np.dtype(modality.dtype), folder).reshape(manifest.items, modality.dim)
            self.copy_features(modality, values)
            path = self.root / layout.basis_file(modality.name)
            basis = open_basis(path, modality) if path.name in manifest.digests else None
            missing = self.missing(modality)
            features[modality.name] = Features(values, modality.source_dim, basis, missing)
        return Dataset(
            name=manifest.name,
            user_ids=self.ids["user"],
            item_ids=self.ids["item"],
            user=user,
            item=item,
            split=split,
            split_method=manifest.split,
            features=features,
            weight=weight,
            counts=manifest.counts,
            inputs=manifest.inputs,
        )

    def interactions(self, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns user number, item number, split and weight of all interactions [E], sorted by user and item.

        A prepared folder has weights of training interactions only; that of the others is 1. Without any it is None.

        Raises:
            InputError: `prepared.rows`, an interaction has a row of the padding.
        """
        manifest = self.manifest
        total = manifest.train + manifest.validation + manifest.test
        count = np.zeros(manifest.users, np.int64)
        for part in range(manifest.num_parts):
            degree = self._table(part, NODES["user"])["train_degree"].to_numpy()
            count[self._own(part, "user")] += degree
            for name in layout.HELD_OUT.values():
                np.add.at(count, self._pairs(part, name)[0], 1)
        if int(count.sum()) != total:
            message = f"the users have {count.sum():,} interactions, the manifest says {total:,}"
            raise InputError(f"{self.root}: {message}", "prepared.rows")
        begin = np.cumsum(count) - count
        kinds: list[type[np.generic]] = [blocks.index_type(manifest.users), blocks.index_type(manifest.items), np.int8]
        kinds += [np.float32] if manifest.weighted else []
        columns = [blocks.column(total, kind, folder) for kind in kinds]
        for part in self._parts("reading interactions"):
            found = [self._train(part)]
            found += [self._held_out(part, split) for split in layout.HELD_OUT]
            values = [np.concatenate(column) for column in zip(*found, strict=True)]
            order = np.lexsort((values[1], values[0]))
            target = _places(begin, values[0][order])
            for column, own in zip(columns, values, strict=False):  # the last values are the weights
                column[target] = own[order]
        return columns[0], columns[1], columns[2], columns[3] if manifest.weighted else None

    def copy_features(self, modality: Modality, target: np.ndarray) -> None:
        """Copies the features of all items to `target` [items, dim], by number."""
        for part in self._parts(f"reading {modality.name}"):
            own = self._own(part, "item")
            path = layout.part_dir(self.root, part) / layout.features_file(modality.name)
            values = open_features(path, modality, len(own))
            for begin in range(0, len(own), FEATURE_ROWS):
                target[own[begin : begin + FEATURE_ROWS]] = values[begin : begin + FEATURE_ROWS]

    def missing(self, modality: Modality) -> np.ndarray | None:
        """Returns which items have no such features [items] bool, by number; None if the modality has no masks."""
        if not modality.masked:
            return None
        missing = np.zeros(self.manifest.items, bool)
        for part in range(self.manifest.num_parts):
            own = self._own(part, "item")
            path = layout.part_dir(self.root, part) / layout.missing_file(modality.name)
            missing[own] = open_missing(path, len(own))
        return missing

    def item_graph(self) -> ItemGraph:
        """Returns the item graph by numbers.

        Raises:
            InputError: `prepared.rows`, a neighbour is no item; `array.shape`, not one list per item.
        """
        length = np.zeros(self.manifest.items, np.int64)
        for part in range(self.manifest.num_parts):
            path = layout.part_dir(self.root, part) / layout.ITEM_GRAPH
            own, similar = self._own(part, "item"), read_similar(path)
            right = len(similar.indptr) == len(own) + 1
            require(right, path, f"not one list for each of {len(own):,} items", "array.shape")
            length[own] = np.diff(similar.indptr)
        indptr = np.concatenate([[0], np.cumsum(length)])
        neighbour, weight = np.empty(indptr[-1], np.int64), np.empty(indptr[-1], np.float32)
        for part in self._parts("reading the item graph"):
            path = layout.part_dir(self.root, part) / layout.ITEM_GRAPH
            own, similar = self._own(part, "item"), read_similar(path)
            found, row = self._numbers("item", similar.neighbour, path), np.repeat(own, length[own])
            order = np.lexsort((found, row))
            target = _places(indptr, row[order])
            neighbour[target], weight[target] = found[order], similar.weight[order]
        return ItemGraph(indptr, neighbour, weight, self.manifest.statistics["item_graph_recall"])

    def _parts(self, what: str) -> Iterator[int]:
        return iter(tqdm(range(self.manifest.num_parts), desc=what, unit="part", disable=None, leave=False))

    def _table(self, part: int, name: str) -> pa.Table:
        kind = "user" if name == layout.USERS else "item"
        schema = PAIR_SCHEMA if name in layout.HELD_OUT.values() else node_schema(self.manifest, kind)
        return read_table(layout.part_dir(self.root, part) / name, schema)

    def _own(self, part: int, kind: str) -> np.ndarray:
        """Returns the numbers of a part's users or items, in offset order."""
        sizes, first = self.manifest.parts[part], part * stride(self.manifest, kind)
        count = sizes.users if kind == "user" else sizes.items
        return self.number[kind][first : first + count]

    def _pairs(self, part: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns user and item numbers of a part's held-out interactions."""
        table, path = self._table(part, name), layout.part_dir(self.root, part) / name
        user, item = (self._numbers(kind, table[kind].to_numpy(), path) for kind in KINDS)
        return user, item

    def _held_out(self, part: int, split: str) -> Columns:
        """Returns the interactions of a part's users in a held-out split."""
        user, item = self._pairs(part, layout.HELD_OUT[split])
        return user, item, np.full(len(user), LABELS[split], np.int8), np.ones(len(user), np.float32)

    def _train(self, part: int) -> Columns:
        """Returns the training interactions of a part's users."""
        path = layout.part_dir(self.root, part) / layout.GRAPH
        graph = read_graph(path, self.manifest.weighted)
        item, user = graph.edges[layout.ITEM_TO_USER]
        row = graph.row["user"][user], graph.row["item"][item]
        weights = graph.weights
        weight = np.ones(len(user), np.float32) if weights is None else weights.edge[layout.ITEM_TO_USER]
        numbers = self._numbers("user", row[0], path), self._numbers("item", row[1], path)
        return *numbers, np.full(len(user), TRAIN, np.int8), weight

    def _numbers(self, kind: str, row: np.ndarray, path: Path) -> np.ndarray:
        """Returns the numbers of rows.

        Raises:
            InputError: `prepared.rows`, one is outside, or padding.
        """
        table = self.number[kind]
        inside = (row >= 0) & (row < len(table))
        found = np.where(inside, table[np.where(inside, row, 0)], -1)
        wrong = np.flatnonzero(found < 0)
        if len(wrong):
            message = f"{kind} row {row[wrong[0]]} belongs to no {kind} ({len(wrong):,} of {len(row):,} rows)"
            raise InputError(f"{path}: {message}", "prepared.rows")
        return found


def _places(begin: np.ndarray, node: np.ndarray) -> np.ndarray:
    """Returns where the rows of nodes go, one after the other, if those of node n begin at `begin[n]`.

    Args:
        begin: [nodes] at least.
        node: [n] ascending.
    """
    return begin[node] + np.arange(len(node)) - np.searchsorted(node, node)


def _numbered(root: Path, manifest: Manifest, kind: str) -> tuple[pa.Array, np.ndarray]:
    """Returns the ids by number, and the number in every row, -1 in padding."""
    schema = node_schema(manifest, kind)
    columns = [
        read_table(layout.part_dir(root, part) / NODES[kind], schema)["id"] for part in range(manifest.num_parts)
    ]
    rows = node_rows(manifest, kind)
    if sum(map(len, columns)) != len(rows):
        message = f"{sum(map(len, columns)):,} {kind}s in {NODES[kind]} of all parts, {len(rows):,} in the manifest"
        raise InputError(f"{root}: {message}", "prepared.rows")
    chunks = [chunk for column in columns for chunk in column.chunks]
    kind_of_ids = pa.int64() if pa.types.is_integer(schema["id"]) else pa.large_string()  # earlier versions: string
    ids = pa.concat_arrays([chunk.cast(kind_of_ids) for chunk in chunks])
    order = read_order(root, manifest, kind)
    place = pc.sort_indices(ids).to_numpy() if order is None else np.searchsorted(rows, order)
    number = np.full(manifest.num_parts * stride(manifest, kind), -1, np.int64)
    number[rows[place]] = np.arange(len(rows))
    return ids.take(pa.array(place)), number
