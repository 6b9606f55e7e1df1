"""Writes a prepared folder part by part, under a temporary name, and renames it when it is complete.

DGL's own `partition_graph` with `num_hops=1` writes the same in-edges and halo, but it holds the relabelled graph
and all parts in memory at once, and numbers nodes by part without gaps and whether or not they are trained. Here one
part is built at a time from its own interactions, and the row space (partition.folder.layout) is assigned at once, for
any assignment of nodes to parts.
"""

from __future__ import annotations

import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from partition.columns_on_disk import npy_file
from partition.cut.assign import Assignment
from partition.errors import InputError
from partition.files import atomic_folder, is_free, sha256
from partition.folder import layout
from partition.folder.arrays import Similar, write_graph, write_similar, write_table
from partition.folder.manifest import SCHEMA_VERSION, Manifest, Modality, Part, cut_statistics, write_manifest
from partition.folder.rows import Edges, RowSpace
from partition.item_graph.graph import ItemGraph
from partition.resume import Work
from partition.threads import at_once, each
from partition.transform.dataset import Dataset

_SIZES = "sizes.json"  # of a part, until the manifest is written
FEATURE_ROWS = 65_536  # rows of features copied at a time
EDGE_BYTES = 100  # of memory per training interaction of a part while it is written


def write_prepared(
    dataset: Dataset,
    graph: ItemGraph,
    assignment: Assignment,
    output: Path,
    settings: dict[str, Any],
    statistics: dict[str, float],
    work: Work | None = None,
    threads: int = 1,
) -> None:
    """Writes `output`; a prepared folder of that name is replaced once the new one is complete.

    Args:
        dataset: the interactions and features.
        graph: the item-item graph over the data set's item indices.
        assignment: the part of every user and item.
        output: the folder.
        settings: the command, for the manifest.
        statistics: of earlier stages, for the manifest; those measured here are added.
        work: where finished parts are kept until all are written, to resume; None writes them to the folder at once.
        threads: parts that are written at the same time, as far as memory allows.

    Raises:
        InputError: `output.not-prepared`, `output` is neither a prepared folder nor an empty one; it is left alone.
        OSError: it cannot be written.
    """
    with atomic_folder(output) as folder:
        edges = Edges(dataset, assignment, folder if work is None else work.folder)
        parts = _write_parts(dataset, graph, edges, folder, work, threads)
        shared = _write_bases(dataset, folder) | _write_orders(dataset, edges, folder)
        write_manifest(folder, _manifest(dataset, graph, edges, parts, shared, settings, statistics))
        if not is_free(output) and not (output / layout.MANIFEST).is_file():
            raise InputError(
                f"{output}: exists and is not a prepared folder; choose another name", "output.not-prepared"
            )


def _write_parts(
    dataset: Dataset, graph: ItemGraph, edges: Edges, folder: Path, work: Work | None, threads: int
) -> list[Part]:
    """Writes the folders of all parts; returns their sizes and digests."""
    targets = [layout.part_dir(folder, part) for part in range(edges.parts)]
    targets[0].parent.mkdir(parents=True)

    def write(part: int) -> None:
        make = partial(_write_part, dataset, graph, edges, part)
        if work is None:
            make(targets[part])
        else:
            work.result(targets[part].name, make)
        bar.update()

    with tqdm(total=edges.parts, desc="writing parts", unit="part", disable=None) as bar:
        each(write, range(edges.parts), at_once(threads, EDGE_BYTES * edges.largest))
    sizes = []
    for target in targets:
        if work is not None:
            (work.folder / target.name).rename(target)
        sizes.append(Part.model_validate_json((target / _SIZES).read_text(encoding="utf-8")))
        (target / _SIZES).unlink()
    return sizes


def _write_part(dataset: Dataset, graph: ItemGraph, edges: Edges, part: int, target: Path) -> None:
    """Writes the files of one part, and its sizes and digests beside them, to the new folder `target`."""
    target.mkdir(parents=True)
    users, items = edges.users.members[part], edges.items.members[part]
    _write_nodes(target / layout.USERS, dataset.user_ids, edges.users.degree, users)
    _write_nodes(target / layout.ITEMS, dataset.item_ids, edges.items.degree, items)
    counts = _write_graph(target / layout.GRAPH, edges, part)
    _write_item_graph(target / layout.ITEM_GRAPH, graph, edges.items, part)
    for split, name in layout.HELD_OUT.items():
        user, item = edges.held_out(split, part)
        write_table(target / name, {"user": pa.array(user), "item": pa.array(item)})
        counts[split] = len(user)
    for name, features in dataset.features.items():
        _write_features(target / layout.features_file(name), features.values, items)
        if features.missing is not None:
            np.save(target / layout.missing_file(name), features.missing[items])
    files = sorted(target.iterdir())
    sizes = Part(
        users=len(users),
        active_users=int((edges.users.degree[users] > 0).sum()),
        items=len(items),
        active_items=int((edges.items.degree[items] > 0).sum()),
        digests={path.name: sha256(path) for path in files},
        bytes={path.name: path.stat().st_size for path in files},
        **counts,
    )
    (target / _SIZES).write_text(sizes.model_dump_json(), encoding="utf-8")


def _write_nodes(path: Path, ids: pa.Array, degree: np.ndarray, members: np.ndarray) -> None:
    own = ids.take(pa.array(members))
    own = own if pa.types.is_integer(own.type) else own.cast(pa.large_string())
    write_table(path, {"id": own, "train_degree": pa.array(degree[members])})


def _write_graph(path: Path, edges: Edges, part: int) -> dict[str, int]:
    """Writes the training edges of a part; returns the sizes that follow from them."""
    graph = edges.graph(part)
    write_graph(path, graph)
    users, items = len(edges.users.members[part]), len(edges.items.members[part])
    source, _ = graph.edges[layout.ITEM_TO_USER]
    return {
        "train": len(source),
        "inner_edges": int((source < items).sum()),
        "halo_users": len(graph.row["user"]) - users,
        "halo_items": len(graph.row["item"]) - items,
    }


def _write_item_graph(path: Path, graph: ItemGraph, items: RowSpace, part: int) -> None:
    members = items.members[part]
    length = np.diff(graph.indptr)[members]
    indptr = np.zeros(len(members) + 1, np.int64)
    np.cumsum(length, out=indptr[1:])
    edge = np.repeat(graph.indptr[members] - indptr[:-1], length) + np.arange(indptr[-1])
    neighbour, row = items.row[graph.neighbour[edge]], np.repeat(np.arange(len(members)), length)
    order = np.argsort(row * items.end + neighbour)
    write_similar(path, Similar(indptr, neighbour[order], graph.weight[edge][order]))


def _write_features(path: Path, values: np.ndarray, members: np.ndarray) -> None:
    target = npy_file(path, values.dtype.newbyteorder("="), (len(members), values.shape[1]))
    for begin in range(0, len(members), FEATURE_ROWS):
        target[begin : begin + FEATURE_ROWS] = values[members[begin : begin + FEATURE_ROWS]]
    target.flush()


def _write_bases(dataset: Dataset, folder: Path) -> dict[str, str]:
    """Writes the bases of the modalities that were reduced; returns file name -> digest."""
    digests = {}
    for name, features in dataset.features.items():
        if features.basis is not None:
            path = folder / layout.basis_file(name)
            np.save(path, features.basis)
            digests[path.name] = sha256(path)
    return digests


def _write_orders(dataset: Dataset, edges: Edges, folder: Path) -> dict[str, str]:
    """Writes the rows of users and of items by index, unless that is the order of the ids; file name -> digest.

    With them the data set can be read from the folder as it was, which the cut into another number of parts needs.
    """
    digests = {}
    for kind, ids, space in (("user", dataset.user_ids, edges.users), ("item", dataset.item_ids, edges.items)):
        if not pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py():
            path = folder / layout.order_file(kind)
            np.save(path, space.row)
            digests[path.name] = sha256(path)
    return digests


def _manifest(
    dataset: Dataset,
    graph: ItemGraph,
    edges: Edges,
    parts: list[Part],
    shared: dict[str, str],
    settings: dict[str, Any],
    statistics: dict[str, float],
) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=dataset.name,
        users=len(dataset.user_ids),
        items=len(dataset.item_ids),
        train=sum(part.train for part in parts),
        validation=sum(part.validation for part in parts),
        test=sum(part.test for part in parts),
        user_stride=edges.users.stride,
        item_stride=edges.items.stride,
        parts=parts,
        modalities=[
            Modality(
                name=name,
                dim=f.values.shape[1],
                dtype=f.values.dtype.name,
                source_dim=f.source_dim,
                masked=f.missing is not None,
            )
            for name, f in dataset.features.items()
        ],
        split=dataset.split_method,
        user_id_type="int64" if pa.types.is_integer(dataset.user_ids.type) else "string",
        item_id_type="int64" if pa.types.is_integer(dataset.item_ids.type) else "string",
        weighted=dataset.weight is not None,
        counts=dataset.counts,
        settings=settings,
        inputs=dataset.inputs,
        digests=shared,
        statistics={**statistics, **cut_statistics(parts), "item_graph_recall": graph.recall},
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("dgl", "numpy", "pyarrow", "faiss-cpu")},
        },
    )
