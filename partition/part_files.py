"""The files of one part (partition.layout): how each is written, and how it is read back with its format checked.

The only file besides `partition.assign` in which preparation uses DGL.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from partition import layout
from partition.errors import InputError

os.environ.setdefault("DGLBACKEND", "pytorch")  # else the import of dgl writes a file into the home folder
import dgl

KINDS = ("user", "item")
RELATIONS = (layout.USER_TO_ITEM, layout.ITEM_TO_USER)
Relation = tuple[str, str, str]


@dataclass(frozen=True)
class Graph:
    """graph.dgl: nodes 0..n-1 of a kind are the part's own, in offset order; halo nodes follow, ascending by row."""

    row: dict[str, np.ndarray]  # kind -> [nodes] int64 global row
    degree: dict[str, np.ndarray]  # kind -> [nodes] int32 training interactions in the full graph
    edges: dict[Relation, tuple[np.ndarray, np.ndarray]]  # (source, destination) [edges] int64 node numbers

    def digest(self) -> str:
        """Sha256 of the arrays, as lower-case hex.

        Not of the file: DGL leaves gaps in it that hold whatever was in memory.
        """
        digest = hashlib.sha256()
        arrays = [table[kind] for kind in KINDS for table in (self.row, self.degree)]
        for array in arrays + [ends for relation in RELATIONS for ends in self.edges[relation]]:
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def write_graph(path: Path, graph: Graph) -> None:
    """Saves it as DGL's own format, edges in their order."""
    stored = dgl.heterograph(
        {relation: tuple(torch.from_numpy(ends) for ends in graph.edges[relation]) for relation in RELATIONS},
        {kind: len(rows) for kind, rows in graph.row.items()},
    )
    for kind in KINDS:
        stored.nodes[kind].data["row"] = torch.from_numpy(graph.row[kind])
        stored.nodes[kind].data["degree"] = torch.from_numpy(graph.degree[kind])
    dgl.save_graphs(str(path), [stored], formats="coo")


def read_graph(path: Path) -> Graph:
    """Reads it back.

    Raises:
        InputError: not a DGL file, or one with other node or edge types, or without a node's row and degree.
    """
    try:
        stored = dgl.load_graphs(str(path))[0]
    except dgl.DGLError:  # its message is a stack of C++ frames
        raise InputError(f"{path}: cannot be read as a DGL graph") from None
    if len(stored) != 1 or set(stored[0].canonical_etypes) != set(RELATIONS):
        raise InputError(f"{path}: expected one graph with the edge types {RELATIONS[0]} and {RELATIONS[1]}")
    nodes = {kind: stored[0].nodes[kind].data for kind in KINDS}
    for kind, data in nodes.items():
        for name, dtype in (("row", torch.int64), ("degree", torch.int32)):
            if name not in data or data[name].dtype != dtype or data[name].ndim != 1:
                raise InputError(f"{path}: {kind} nodes: expected {name!r}, one {dtype} a node")
    edges = {relation: stored[0].edges(etype=relation, order="eid") for relation in RELATIONS}
    return Graph(
        {kind: data["row"].numpy() for kind, data in nodes.items()},
        {kind: data["degree"].numpy() for kind, data in nodes.items()},
        {relation: (source.numpy(), destination.numpy()) for relation, (source, destination) in edges.items()},
    )


@dataclass(frozen=True)
class Similar:
    """item_graph.npz: CSR over the part's own items."""

    indptr: np.ndarray  # [items + 1] int64
    neighbour: np.ndarray  # [edges] int64 global item row, ascending within an item
    weight: np.ndarray  # [edges] float32


def write_similar(path: Path, similar: Similar) -> None:
    """Saves the item graph of one part."""
    np.savez(path, indptr=similar.indptr, neighbour=similar.neighbour, weight=similar.weight)


def read_similar(path: Path) -> Similar:
    """Reads it back.

    Raises:
        InputError: not an .npz file, or an array is missing or has another dtype or shape.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            similar = Similar(arrays["indptr"], arrays["neighbour"], arrays["weight"])
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise InputError(f"{path}: cannot be read as an item graph: {_one_line(error)}") from None
    for name, dtype in (("indptr", np.int64), ("neighbour", np.int64), ("weight", np.float32)):
        array = getattr(similar, name)
        if array.ndim != 1 or array.dtype != dtype:
            raise InputError(f"{path}: {name}: {array.dtype} {array.shape}, expected one row of {np.dtype(dtype)}")
    return similar


def write_table(path: Path, columns: dict[str, pa.Array]) -> None:
    """Saves columns as an Arrow IPC file."""
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path, schema: dict[str, pa.DataType]) -> pa.Table:
    """Memory-maps an Arrow IPC file.

    Raises:
        InputError: not an Arrow file, other columns or types, or a null; the message names column and row.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read as an Arrow file: {_one_line(error)}") from None
    if {field.name: field.type for field in table.schema} != schema:
        found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        wanted = ", ".join(f"{name} {kind}" for name, kind in schema.items())
        raise InputError(f"{path}: has columns {found}; expected {wanted}")
    for name in schema:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise InputError(f"{path}: column {name!r}, row {row}: null")
    return table


def node_schema(manifest: layout.Manifest, kind: str) -> dict[str, pa.DataType]:
    """Columns of users.arrow and items.arrow."""
    ids = manifest.user_id_type if kind == "user" else manifest.item_id_type
    return {"id": pa.string() if ids == "string" else pa.int64(), "train_degree": pa.int64()}


PAIR_SCHEMA = {"user": pa.int64(), "item": pa.int64()}  # columns of validation.arrow and test.arrow, global rows


def open_features(path: Path, modality: layout.Modality, items: int) -> np.ndarray:
    """Memory-maps [items, dim] features.

    Raises:
        InputError: not a .npy file, or another dtype or shape.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as .npy: {_one_line(error)}") from None
    wanted = (items, modality.dim)
    if not isinstance(values, np.ndarray) or values.shape != wanted or values.dtype != np.dtype(modality.dtype):
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise InputError(f"{path}: {found}; the manifest says {modality.dtype} {wanted}")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
