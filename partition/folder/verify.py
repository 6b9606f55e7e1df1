"""Checks every invariant of a prepared folder (partition.folder.layout) from its files alone.

One part is in memory at a time, plus the degrees (8 bytes per node), and all ids at the end. Every interaction must be
among the edges of its user's part and of its item's part, with the same weight. To check this, sums of hashed edges are
compared per pair of parts; two parts are read again, to name the edge, only where the sums differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from partition.errors import InputError, require
from partition.folder import layout
from partition.folder.arrays import KINDS, Graph, Relation, node_schema, read_graph, read_table
from partition.folder.integrity import check_manifest, check_parts, check_shared
from partition.folder.layout import ITEM_TO_USER, USER_TO_ITEM
from partition.folder.manifest import Manifest, read_manifest
from partition.folder.order import read_order
from partition.folder.verify_part import (
    Folder,
    degrees,
    features,
    halo_weights,
    interactions,
    item_graph,
    pairs_of,
    user_item,
)


def verify(root: Path) -> Manifest:
    """Checks a prepared folder; returns its manifest.

    Raises:
        InputError: the first violation, by file and row; rows of a file count from 0. The codes are those of
            `read_manifest`, `check_manifest`, `check_parts`, the checks in `verify_part`, and `prepared.files` (a file
            that does not belong here), `prepared.ids` (an id of two nodes), `prepared.graph` (a one-sided edge).
    """
    folder = Folder(root, read_manifest(root))
    check_manifest(root, folder.manifest)
    _files(folder)
    stages: list[tuple[str, Callable[[Folder, int], None]]] = [
        ("degrees", degrees),
        ("graph", user_item),
        ("item graph", item_graph),
        ("features", features),
    ]
    for kind in KINDS:
        read_order(root, folder.manifest, kind)
        rows = folder.manifest.num_parts * folder.stride(kind)
        folder.degree[kind] = np.full(rows, -1, np.int64)
        if folder.manifest.weighted:
            folder.weighted_degree[kind] = np.zeros(rows)
    for name, check in stages:
        for part in tqdm(folder.parts, desc=f"verify: {name}", unit="part", disable=None):
            check(folder, part)
    _unique_ids(folder)
    _both_directions(folder)
    return folder.manifest


def _files(folder: Folder) -> None:
    """Checks that every part has exactly its files, with the bytes that were written."""
    names = folder.manifest.part_files
    check_shared(folder.root, folder.manifest)
    wanted = {layout.part_dir(folder.root, part).name for part in folder.parts}
    for entry in sorted((folder.root / "parts").glob("*")):
        require(entry.name in wanted, entry, "belongs to no part of the manifest", "prepared.files")
    for part in tqdm(folder.parts, desc="verify: digests", unit="part", disable=None):
        for entry in sorted(layout.part_dir(folder.root, part).glob("*")):
            require(entry.name in names, entry, "is not a file of a part", "prepared.files")
        check_parts(folder.root, folder.manifest, [part], "full")


def _unique_ids(folder: Folder) -> None:
    """Checks that no id belongs to two nodes, of one part or of two."""
    for kind, name in (("user", layout.USERS), ("item", layout.ITEMS)):
        schema = node_schema(folder.manifest, kind)
        tables = [read_table(folder.file(part, name), schema)["id"] for part in folder.parts]
        ids = pa.chunked_array([chunk for column in tables for chunk in column.chunks], type=schema["id"])
        if pc.count_distinct(ids).as_py() == len(ids):
            continue
        counts = pc.value_counts(ids)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        at = [
            f"{folder.file(part, name)}: row {row}"
            for part, column in enumerate(tables)
            for row in np.flatnonzero(pc.equal(column, twice).to_numpy())
        ]
        raise InputError(f"{at[1]}: id {twice.as_py()!r} is also at {at[0]}", "prepared.ids")


def _both_directions(folder: Folder) -> None:
    """Checks that every interaction is once among its user's in-edges and once among its item's, weighted alike."""
    count = folder.manifest.num_parts
    sums = {relation: np.zeros((count, count, 2), np.uint64) for relation in (ITEM_TO_USER, USER_TO_ITEM)}
    for part in tqdm(folder.parts, desc="verify: both directions", unit="part", disable=None):
        graph = read_graph(folder.file(part, layout.GRAPH), folder.manifest.weighted)
        halo_weights(folder, part, graph)
        for relation, table in sums.items():
            user, item = interactions(graph, relation)
            at = user // folder.stride("user"), item // folder.stride("item")
            np.add.at(table[..., 0], at, np.uint64(1))
            np.add.at(table[..., 1], at, _hashed_edges(folder, graph, relation))
    for user_part, item_part in np.argwhere((sums[ITEM_TO_USER] != sums[USER_TO_ITEM]).any(axis=-1)):
        _name_one_sided(folder, int(user_part), int(item_part))


def _hashed_edges(folder: Folder, graph: Graph, relation: Relation) -> np.ndarray:
    """Returns a hash [E] uint64 of every edge: of its pair of rows and, if there are weights, of its weight's bits."""
    pairs = _hash(pairs_of(folder, *interactions(graph, relation)))
    return pairs if graph.weights is None else _hash(pairs + graph.weights.edge[relation].view(np.uint32))


def _hash(number: np.ndarray) -> np.ndarray:
    """Returns the finaliser of splitmix64, [n] uint64: sums over different sets do not agree by chance."""
    mixed = number.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _name_one_sided(folder: Folder, user_part: int, item_part: int) -> None:
    """Raises InputError for the first interaction between two parts that only one has, or whose weights differ."""
    sides, weights = {}, {}
    for part, relation in ((user_part, ITEM_TO_USER), (item_part, USER_TO_ITEM)):
        path = folder.file(part, layout.GRAPH)
        graph = read_graph(path, folder.manifest.weighted)
        user, item = interactions(graph, relation)
        between = (user // folder.stride("user") == user_part) & (item // folder.stride("item") == item_part)
        pairs = pairs_of(folder, user[between], item[between])
        sides[relation] = path, pairs
        if graph.weights is not None:
            weights[relation] = graph.weights.edge[relation][between][np.argsort(pairs)]
    for relation, other in ((ITEM_TO_USER, USER_TO_ITEM), (USER_TO_ITEM, ITEM_TO_USER)):
        (path, pairs), (other_path, others) = sides[relation], sides[other]
        alone = np.setdiff1d(pairs, others)
        if len(alone):
            user_row, item_row = divmod(int(alone[0]), folder.manifest.item_rows)
            message = f"no {other[1]} edge for user row {user_row} and item row {item_row}, which {path} has"
            raise InputError(f"{other_path}: {message}", "prepared.graph")
    path, pairs = sides[ITEM_TO_USER]
    first = int(np.argmax(weights[ITEM_TO_USER] != weights[USER_TO_ITEM]))
    user_row, item_row = divmod(int(np.sort(pairs)[first]), folder.manifest.item_rows)
    here, there = (float(weights[relation][first]) for relation in (ITEM_TO_USER, USER_TO_ITEM))
    message = f"user row {user_row} and item row {item_row}: weight {here:g}, but {there:g} in {sides[USER_TO_ITEM][0]}"
    raise InputError(f"{path}: {message}", "prepared.graph")
