"""Export in DGL's own format of a partitioned graph, which `dgl.distributed.load_partition` and `DistGraph` read.

The parts are those of the prepared folder, with the training interactions in both directions. A part holds the in-edges
of its nodes and, as halo, the nodes of other parts from which they come, as `dgl.distributed.partition_graph` with one
hop writes it. DGL numbers nodes and edges without gaps: in a part first the items, then the users, in offset order; the
edges to users, then those to items, in the order of graph.npz. One part at a time is in memory.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from partition.export.rows import Target
from partition.folder import layout
from partition.folder.arrays import PAIR_SCHEMA, Graph, node_schema, open_features, open_missing, read_graph, read_table
from partition.folder.manifest import Manifest
from partition.folder.read_dataset import NODES, PreparedFolder

KINDS = ("item", "user")  # node types in DGL's order: their type numbers are 0 and 1
RELATIONS = (layout.ITEM_TO_USER, layout.USER_TO_ITEM)  # edge types: their numbers are 0 and 1 too
CONFIG = "part_config.json"


@dataclass(frozen=True)
class Numbers:
    """DGL's numbers of the nodes: over all nodes, and per node type."""

    stride: dict[str, int]  # kind -> rows of a part
    size: dict[str, np.ndarray]  # kind -> [parts] number of nodes
    first: dict[str, np.ndarray]  # kind -> [parts] number of the part's first node over all nodes
    first_of_kind: dict[str, np.ndarray]  # kind -> [parts] the same within the kind

    @classmethod
    def of(cls, manifest: Manifest) -> Numbers:
        """Numbers the nodes part by part, the items of a part before its users."""
        size = {
            "item": np.array([part.items for part in manifest.parts], np.int64),
            "user": np.array([part.users for part in manifest.parts], np.int64),
        }
        begin = np.cumsum(size["item"] + size["user"]) - size["item"] - size["user"]
        return cls(
            stride={"item": manifest.item_stride, "user": manifest.user_stride},
            size=size,
            first={"item": begin, "user": begin + size["item"]},
            first_of_kind={kind: np.cumsum(sizes) - sizes for kind, sizes in size.items()},
        )

    def node(self, kind: str, row: np.ndarray) -> np.ndarray:
        """Returns the numbers over all nodes of rows."""
        part, offset = np.divmod(row, self.stride[kind])
        return self.first[kind][part] + offset

    def node_of_kind(self, kind: str, row: np.ndarray) -> np.ndarray:
        """Returns the numbers within the kind of rows."""
        part, offset = np.divmod(row, self.stride[kind])
        return self.first_of_kind[kind][part] + offset

    def ranges(self, kind: str) -> list[list[int]]:
        """Returns [first, end] per part, over all nodes."""
        return np.stack([self.first[kind], self.first[kind] + self.size[kind]], 1).tolist()


def write(source: PreparedFolder, target: Target) -> list[str]:
    """Writes the files; returns lines for the user.

    - `part_config.json`: sizes, node and edge types, and which numbers belong to which part.
    - `partN/graph.dgl`.
    - `partN/node_feat.dgl`: `item/MODALITY`, and `item/missing_MODALITY` if it has masks.
    - `partN/edge_feat.dgl`: `user:rates:item/weight` and the same for `item:rated_by:user`, if there are weights.
    - `partN/items.parquet`, `partN/users.parquet`: `node` (number within the type) and `id` (external id).
    - `partN/validation.parquet`, `partN/test.parquet`: `user`, `item` (numbers within the type), of the part's users.
    """
    manifest, numbers = source.manifest, Numbers.of(source.manifest)
    files: dict[str, Any] = {}
    edge_ranges: list[list[list[int]]] = []  # per part and relation: [first, end]
    for part in tqdm(range(manifest.num_parts), desc="writing parts", unit="part", disable=None, leave=False):
        folder = target.folder / f"part{part}"
        folder.mkdir()
        graph = read_graph(layout.part_dir(source.root, part) / layout.GRAPH, manifest.weighted)
        begin = edge_ranges[-1][-1][-1] if edge_ranges else 0
        edge_ranges.append(_edge_ranges(graph, begin))
        _write_graph(folder / "graph.dgl", graph, numbers, part, begin)
        _write_features(folder, source, part, graph)
        _write_tables(folder, source, numbers, part)
        files[f"part-{part}"] = {
            "node_feats": f"part{part}/node_feat.dgl",
            "edge_feats": f"part{part}/edge_feat.dgl",
            "part_graph": f"part{part}/graph.dgl",
        }
    config = {
        "graph_name": target.name,
        "num_nodes": manifest.users + manifest.items,
        "num_edges": 2 * manifest.train,
        "part_method": str(manifest.settings.get("method", "unknown")),
        "num_parts": manifest.num_parts,
        "halo_hops": 1,
        "node_map": {kind: numbers.ranges(kind) for kind in KINDS},
        "edge_map": {
            ":".join(relation): [ranges[number] for ranges in edge_ranges] for number, relation in enumerate(RELATIONS)
        },
        "ntypes": {kind: number for number, kind in enumerate(KINDS)},
        "etypes": {":".join(relation): number for number, relation in enumerate(RELATIONS)},
        **files,
    }
    (target.folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return [f"read it with: dgl.distributed.load_partition({str(target.output / CONFIG)!r}, part)"]


def _edge_ranges(graph: Graph, begin: int) -> list[list[int]]:
    ranges = []
    for relation in RELATIONS:
        end = begin + len(graph.edges[relation][0])
        ranges.append([begin, end])
        begin = end
    return ranges


def _write_graph(path: Path, graph: Graph, numbers: Numbers, part: int, begin: int) -> None:
    """Writes graph.dgl: all nodes and edges of a part as one type each, with their types as data.

    The part's own nodes come first, so that their place is their number less that of the part's first node.
    """
    dgl, torch = _dgl()
    own = {kind: int(numbers.size[kind][part]) for kind in KINDS}
    halo = {kind: len(graph.row[kind]) - own[kind] for kind in KINDS}
    blocks = [(kind, inner) for inner in (True, False) for kind in KINDS]
    place: dict[tuple[str, bool], int] = {}  # of the first node of a block
    total = 0
    for kind, inner in blocks:
        place[kind, inner] = total
        total += own[kind] if inner else halo[kind]

    def local(kind: str, node: np.ndarray) -> np.ndarray:
        return np.where(node < own[kind], place[kind, True] + node, place[kind, False] + node - own[kind])

    ends: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for relation in RELATIONS:
        for side, kind, node in zip(ends, (relation[0], relation[2]), graph.edges[relation], strict=True):
            side.append(local(kind, node))
    found = dgl.graph(tuple(torch.from_numpy(np.concatenate(side)) for side in ends), num_nodes=total)

    rows = {
        (kind, inner): graph.row[kind][: own[kind]] if inner else graph.row[kind][own[kind] :] for kind, inner in blocks
    }
    sizes = [len(rows[block]) for block in blocks]
    node = np.concatenate([numbers.node(kind, rows[kind, inner]) for kind, inner in blocks])
    owner = np.concatenate([rows[kind, inner] // numbers.stride[kind] for kind, inner in blocks])
    kinds = np.repeat(np.array([KINDS.index(kind) for kind, _ in blocks], np.int32), sizes)
    inner_node = np.repeat(np.array([inner for _, inner in blocks], np.uint8), sizes)
    edges = np.repeat(
        np.arange(len(RELATIONS), dtype=np.int32), [len(graph.edges[relation][0]) for relation in RELATIONS]
    )
    for name, values in ((dgl.NID, node), (dgl.NTYPE, kinds), ("inner_node", inner_node), ("part_id", owner)):
        found.ndata[name] = torch.from_numpy(values)
    found.edata[dgl.EID] = torch.arange(begin, begin + len(edges))
    found.edata[dgl.ETYPE] = torch.from_numpy(edges)
    found.edata["inner_edge"] = torch.ones(len(edges), dtype=torch.uint8)
    dgl.save_graphs(str(path), [found])


def _write_features(folder: Path, source: PreparedFolder, part: int, graph: Graph) -> None:
    """Writes node_feat.dgl and edge_feat.dgl; DGL names a feature TYPE/NAME."""
    dgl, torch = _dgl()
    nodes = {}
    for modality in source.manifest.modalities:
        path = layout.part_dir(source.root, part) / layout.features_file(modality.name)
        values = open_features(path, modality, source.manifest.parts[part].items)
        nodes[f"item/{modality.name}"] = torch.from_numpy(np.array(values))
        if modality.masked:
            missing = open_missing(path.with_name(layout.missing_file(modality.name)), len(values))
            nodes[f"item/missing_{modality.name}"] = torch.from_numpy(missing.astype(np.uint8))
    edges = {}
    if graph.weights is not None:
        for relation, weight in graph.weights.edge.items():
            edges[f"{':'.join(relation)}/weight"] = torch.from_numpy(weight)
    dgl.data.utils.save_tensors(str(folder / "node_feat.dgl"), nodes)
    dgl.data.utils.save_tensors(str(folder / "edge_feat.dgl"), edges)


def _write_tables(folder: Path, source: PreparedFolder, numbers: Numbers, part: int) -> None:
    """Writes the external ids and the held-out interactions as Parquet."""
    root = layout.part_dir(source.root, part)
    for kind in KINDS:
        ids = read_table(root / NODES[kind], node_schema(source.manifest, kind))["id"]
        first = numbers.first_of_kind[kind][part]
        pq.write_table(pa.table({"node": np.arange(first, first + len(ids)), "id": ids}), folder / f"{kind}s.parquet")
    for split, name in layout.HELD_OUT.items():
        pairs = read_table(root / name, PAIR_SCHEMA)
        columns = {kind: numbers.node_of_kind(kind, pairs[kind].to_numpy()) for kind in ("user", "item")}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")


def _dgl() -> tuple[Any, Any]:
    """Returns the modules dgl and torch."""
    os.environ.setdefault("DGLBACKEND", "pytorch")  # otherwise the import of dgl writes a file into the home folder
    import dgl
    import torch

    return dgl, torch
