"""Writes a prepared folder part by part, under a temporary name, and renames it when it is whole.

DGL's own `partition_graph` with `num_hops=1` writes the same in-edges and halo, but it holds the whole relabelled graph
and all parts in memory at once, and numbers nodes by part without gaps and without regard to which are trained. Here
one part is built at a time from its own interactions, and the row space (part * stride + offset, trained nodes
first) is assigned at once, for any assignment.
"""

from __future__ import annotations

import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from partition.cut.assign import Assignment
from partition.errors import InputError
from partition.files import atomic_folder, sha256
from partition.folder import layout
from partition.folder.arrays import Similar, write_graph, write_similar, write_table
from partition.folder.manifest import SCHEMA_VERSION, Manifest, Modality, Part, cut_statistics, write_manifest
from partition.folder.rows import Edges, RowSpace
from partition.item_graph.graph import ItemGraph
from partition.resume import Work
from partition.transform.dataset import Dataset

_SIZES = "sizes.json"  # of a part, until the manifest has them
FEATURE_BLOCK = 65_536  # rows copied at a time


def write_prepared(
    dataset: Dataset,
    graph: ItemGraph,
    assignment: Assignment,
    output: Path,
    settings: dict[str, Any],
    statistics: dict[str, float],
    work: Work | None = None,
) -> None:
    """Writes `output`; a prepared folder of that name is replaced once the new one is whole.

    Args:
        dataset: the interactions and features.
        graph: the item-item graph over the data set's item indices.
        assignment: the part of every user and item.
        output: the folder.
        settings: the command, for the manifest.
        statistics: figures of earlier stages, for the manifest; those measured here are added.
        work: where parts that were written are kept until all are.

    Raises:
        InputError: `output` is something else than a prepared folder or an empty one; it is left alone.
    """

    def write_part(target: Path, part: int) -> None:
        target.mkdir(parents=True)
        users, items = edges.users.members[part], edges.items.members[part]
        _write_nodes(target / layout.USERS, dataset.user_ids, edges.users.degree, users)
        _write_nodes(target / layout.ITEMS, dataset.item_ids, edges.items.degree, items)
        own = edges.graph(part)
        write_graph(target / layout.GRAPH, own)
        source, _ = own.edges[layout.ITEM_TO_USER]
        counted = {
            "train": len(source),
            "inner_edges": int((source < len(items)).sum()),
            "halo_users": len(own.row["user"]) - len(users),
            "halo_items": len(own.row["item"]) - len(items),
        }
        del own, source  # the largest by far
        _write_item_graph(target / layout.ITEM_GRAPH, graph, edges.items, part)
        for split, name in layout.HELD_OUT.items():
            row, other = edges.held_out(split, part)
            write_table(target / name, {"user": pa.array(row), "item": pa.array(other)})
            counted[split] = len(row)
        for name, features in dataset.features.items():
            _write_features(target / layout.features_file(name), features.values, items)
        sizes = Part(
            users=len(users),
            active_users=int((edges.users.degree[users] > 0).sum()),
            items=len(items),
            active_items=int((edges.items.degree[items] > 0).sum()),
            digests={path.name: sha256(path) for path in sorted(target.iterdir())},
            bytes={path.name: path.stat().st_size for path in sorted(target.iterdir())},
            **counted,
        )
        (target / _SIZES).write_text(sizes.model_dump_json(), encoding="utf-8")

    with atomic_folder(output) as folder:
        edges = Edges(dataset, assignment, folder if work is None else work.folder)
        targets = [layout.part_dir(folder, part) for part in range(edges.parts)]
        targets[0].parent.mkdir(parents=True)
        for part in tqdm(range(edges.parts), desc="writing parts", unit="part", disable=None):
            write = partial(write_part, part=part)
            if work is None:
                write(targets[part])
            else:
                work.result(targets[part].name, write)
        sizes = []
        for target in targets:
            if work is not None:
                (work.folder / target.name).rename(target)
            sizes.append(Part.model_validate_json((target / _SIZES).read_text(encoding="utf-8")))
            (target / _SIZES).unlink()
        shared = {}
        for name, features in dataset.features.items():
            if features.basis is not None:
                basis = folder / layout.basis_file(name)
                np.save(basis, features.basis)
                shared[basis.name] = sha256(basis)
        manifest = _manifest(dataset, graph, edges.users, edges.items, sizes, shared, settings, statistics)
        write_manifest(folder, manifest)
        if output.exists() and not replaceable(output):
            raise InputError(f"{output}: exists and is not a prepared folder; choose another name", "output.taken")


def replaceable(output: Path) -> bool:
    """Whether this is a prepared folder or an empty one."""
    return output.is_dir() and ((output / layout.MANIFEST).is_file() or not any(output.iterdir()))


def _write_nodes(path: Path, ids: pa.Array, degree: np.ndarray, members: np.ndarray) -> None:
    write_table(path, {"id": ids.take(pa.array(members)), "train_degree": pa.array(degree[members])})


def _write_item_graph(path: Path, graph: ItemGraph, items: RowSpace, part: int) -> None:
    members = items.members[part]
    length = np.diff(graph.indptr)[members]
    indptr = np.zeros(len(members) + 1, np.int64)
    np.cumsum(length, out=indptr[1:])
    edge = np.repeat(graph.indptr[members] - indptr[:-1], length) + np.arange(indptr[-1])
    neighbour, row = items.row[graph.neighbour[edge]], np.repeat(np.arange(len(members)), length)
    order = np.lexsort((neighbour, row))
    write_similar(path, Similar(indptr, neighbour[order], graph.weight[edge][order]))


def _write_features(path: Path, values: np.ndarray, members: np.ndarray) -> None:
    target = np.lib.format.open_memmap(
        path, mode="w+", dtype=values.dtype.newbyteorder("="), shape=(len(members), values.shape[1])
    )
    for begin in range(0, len(members), FEATURE_BLOCK):
        target[begin : begin + FEATURE_BLOCK] = values[members[begin : begin + FEATURE_BLOCK]]
    target.flush()


def _manifest(
    dataset: Dataset,
    graph: ItemGraph,
    users: RowSpace,
    items: RowSpace,
    sizes: list[Part],
    shared: dict[str, str],
    settings: dict[str, Any],
    statistics: dict[str, float],
) -> Manifest:
    train = sum(part.train for part in sizes)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=dataset.name,
        users=len(dataset.user_ids),
        items=len(dataset.item_ids),
        train=train,
        validation=sum(part.validation for part in sizes),
        test=sum(part.test for part in sizes),
        user_stride=users.stride,
        item_stride=items.stride,
        parts=sizes,
        modalities=[
            Modality(name=name, dim=f.values.shape[1], dtype=f.values.dtype.name, source_dim=f.source_dim)
            for name, f in dataset.features.items()
        ],
        split=dataset.split_method,
        user_id_type="string" if pa.types.is_string(dataset.user_ids.type) else "int64",
        item_id_type="string" if pa.types.is_string(dataset.item_ids.type) else "int64",
        counts=dataset.counts,
        settings=settings,
        inputs=dataset.inputs,
        digests=shared,
        statistics={**statistics, **cut_statistics(sizes), "item_graph_recall": graph.recall},
        versions={
            "python": platform.python_version(),
            **{n: version(n) for n in ("dgl", "numpy", "pyarrow", "faiss-cpu")},
        },
    )
