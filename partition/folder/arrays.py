"""Reads and writes the files of one part (partition.folder.layout); reading checks their format.

Graphs are plain arrays: DGL's own format contains uninitialised memory, so that equal graphs have different digests,
and reading it needs DGL.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from partition.errors import InputError, reading
from partition.folder import layout
from partition.folder.manifest import Manifest, Modality

KINDS = ("user", "item")
RELATIONS = (layout.USER_TO_ITEM, layout.ITEM_TO_USER)
Relation = tuple[str, str, str]


@dataclass(frozen=True)
class Graph:
    """graph.npz. The first nodes of a kind are the part's own, in offset order; halo nodes follow, ascending by row."""

    row: dict[str, np.ndarray]  # kind -> [nodes] int64 global row
    degree: dict[str, np.ndarray]  # kind -> [nodes] int32 training interactions in the full graph
    edges: dict[Relation, tuple[np.ndarray, np.ndarray]]  # (source, destination) [edges] int64 node numbers
    weights: Weights | None = None  # None: every edge weighs 1


@dataclass(frozen=True)
class Weights:
    """The weights of the training interactions, in graph.npz of a weighted folder."""

    edge: dict[Relation, np.ndarray]  # [edges] float32 above 0, in the order of `Graph.edges`
    degree: dict[str, np.ndarray]  # kind -> [nodes] float64 weighted degree: sum of the weights in the full graph


def write_graph(path: Path, graph: Graph) -> None:
    """Writes graph.npz."""
    arrays = {f"{kind}_row": graph.row[kind] for kind in KINDS}
    arrays |= {f"{kind}_degree": graph.degree[kind] for kind in KINDS}
    for relation in RELATIONS:
        arrays[f"{relation[1]}_source"], arrays[f"{relation[1]}_destination"] = graph.edges[relation]
    if graph.weights is not None:
        arrays |= {f"{kind}_weighted_degree": graph.weights.degree[kind] for kind in KINDS}
        arrays |= {f"{relation[1]}_weight": graph.weights.edge[relation] for relation in RELATIONS}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read_graph(path: Path, weighted: bool = False) -> Graph:
    """Reads graph.npz.

    Args:
        path: the file.
        weighted: `Manifest.weighted`: whether the edges have weights.

    Raises:
        InputError: `file.missing` or `file.unreadable`; `array.shape`, an array has another dtype or shape, or does not
            belong there; `graph.node`, an edge has a node that does not exist.
    """
    types: dict[str, Any] = {f"{kind}_row": np.int64 for kind in KINDS}
    types |= {f"{kind}_degree": np.int32 for kind in KINDS}
    types |= {f"{relation[1]}_{end}": np.int64 for relation in RELATIONS for end in ("source", "destination")}
    if weighted:
        types |= {f"{kind}_weighted_degree": np.float64 for kind in KINDS}
        types |= {f"{relation[1]}_weight": np.float32 for relation in RELATIONS}
    arrays = _read_arrays(path, types, "a graph")
    for kind in KINDS:
        of_nodes = [values for name, values in arrays.items() if name.startswith(f"{kind}_")]
        if len(set(map(len, of_nodes))) > 1:
            raise InputError(f"{path}: {kind} nodes: not one row and one degree each", "array.shape")
    edges = {}
    for relation in RELATIONS:
        ends = arrays[f"{relation[1]}_source"], arrays[f"{relation[1]}_destination"]
        for end, kind in zip(ends, (relation[0], relation[2]), strict=True):
            outside = (end < 0) | (end >= len(arrays[f"{kind}_row"]))
            if len(end) != len(ends[0]) or outside.any():
                message = f"{path}: {relation[1]} edges: not a {kind} node at either end of each"
                raise InputError(message, "graph.node")
        edges[relation] = ends
        if weighted and len(arrays[f"{relation[1]}_weight"]) != len(ends[0]):
            raise InputError(f"{path}: {relation[1]} edges: not one weight each", "array.shape")
    weights = None
    if weighted:
        weights = Weights(
            {relation: arrays[f"{relation[1]}_weight"] for relation in RELATIONS},
            {kind: arrays[f"{kind}_weighted_degree"] for kind in KINDS},
        )
    rows, degrees = ({kind: arrays[f"{kind}_{name}"] for kind in KINDS} for name in ("row", "degree"))
    return Graph(rows, degrees, edges, weights)


@dataclass(frozen=True)
class Similar:
    """item_graph.npz: a sparse matrix in CSR form, one row per item of the part."""

    indptr: np.ndarray  # [items + 1] int64
    neighbour: np.ndarray  # [edges] int64 global item row, ascending within an item
    weight: np.ndarray  # [edges] float32


def write_similar(path: Path, similar: Similar) -> None:
    """Writes item_graph.npz."""
    np.savez(path, indptr=similar.indptr, neighbour=similar.neighbour, weight=similar.weight)


def read_similar(path: Path) -> Similar:
    """Reads item_graph.npz.

    Raises:
        InputError: `file.missing` or `file.unreadable`; `array.shape`, an array has another dtype or shape.
    """
    types: dict[str, Any] = {"indptr": np.int64, "neighbour": np.int64, "weight": np.float32}
    return Similar(**_read_arrays(path, types, "an item graph"))


def _read_arrays(path: Path, types: dict[str, Any], what: str) -> dict[str, np.ndarray]:
    """Reads one-dimensional arrays of an .npz file; `types`: name -> dtype."""
    with reading(path, what), np.load(path, allow_pickle=False) as file:
        arrays, surplus = {name: file[name] for name in types}, sorted(set(file.files) - set(types))
    if surplus:
        raise InputError(f"{path}: {surplus[0]}: does not belong in {what} of this folder", "array.shape")
    for name, dtype in types.items():
        if arrays[name].ndim != 1 or arrays[name].dtype != dtype:
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise InputError(f"{path}: {name}: {found}, expected one row of {np.dtype(dtype)}", "array.shape")
    return arrays


def write_table(path: Path, columns: dict[str, pa.Array]) -> None:
    """Writes columns as an Arrow IPC file."""
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_table(path: Path, schema: dict[str, pa.DataType]) -> pa.Table:
    """Memory-maps an Arrow IPC file.

    Raises:
        InputError: `file.missing` or `file.unreadable`; `table.columns`, other columns or types than `schema`;
            `table.null`, a null, whose column and row the message names.
    """
    with reading(path, "an Arrow file"):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
    if {field.name: field.type for field in table.schema} != schema:
        found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        wanted = ", ".join(f"{name} {kind}" for name, kind in schema.items())
        raise InputError(f"{path}: has columns {found}; expected {wanted}", "table.columns")
    for name in schema:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise InputError(f"{path}: column {name!r}, row {row}: null", "table.null")
    return table


def node_schema(manifest: Manifest, kind: str) -> dict[str, pa.DataType]:
    """Returns the columns of users.arrow or items.arrow: name -> type."""
    ids = manifest.user_id_type if kind == "user" else manifest.item_id_type
    text = pa.large_string() if manifest.schema_version >= 4 else pa.string()
    return {"id": text if ids == "string" else pa.int64(), "train_degree": pa.int64()}


PAIR_SCHEMA = {"user": pa.int64(), "item": pa.int64()}  # columns of validation.arrow and test.arrow, global rows


def open_features(path: Path, modality: Modality, items: int) -> np.ndarray:
    """Memory-maps [items, dim] features.

    Raises:
        InputError: `file.missing` or `file.unreadable`; `array.shape`, another dtype or shape than the manifest says.
    """
    with reading(path, ".npy"):
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    wanted = (items, modality.dim)
    if not isinstance(values, np.ndarray) or values.shape != wanted or values.dtype != np.dtype(modality.dtype):
        found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise InputError(f"{path}: {found}; the manifest says {modality.dtype} {wanted}", "array.shape")
    return values


def open_missing(path: Path, items: int) -> np.ndarray:
    """Reads [items] bool: the items without features of a modality.

    Raises:
        InputError: as `open_features`.
    """
    with reading(path, ".npy"):
        mask = np.load(path, allow_pickle=False)
    if not isinstance(mask, np.ndarray) or mask.shape != (items,) or mask.dtype != np.bool_:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else "an archive"
        raise InputError(f"{path}: {found}; expected bool {(items,)}", "array.shape")
    return mask


def open_basis(path: Path, modality: Modality) -> np.ndarray:
    """Memory-maps the [source_dim, dim] float64 basis that a modality was reduced with.

    Raises:
        InputError: as `open_features`.
    """
    wanted = modality.model_copy(update={"dtype": "float64"})
    return open_features(path, wanted, modality.source_dim)
