"""Writes a prepared folder part by part, under a temporary name, and renames it when it is whole.

DGL's own `partition_graph` with `num_hops=1` writes the same in-edges and halo, but it holds the whole relabelled graph
and all parts in memory at once, and numbers nodes by part without gaps and without regard to which are trained. Here
one part is built at a time from the sorted interactions, and the row space (part * stride + offset, trained nodes
first) is assigned at once, for any assignment.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from partition import layout
from partition.assign import Assignment
from partition.dataset import TEST, VALIDATION, Dataset
from partition.errors import InputError
from partition.item_graph import ItemGraph
from partition.part_files import Graph, Similar, write_graph, write_similar, write_table
from partition.seal import sealed
from partition.work import Work, sync

_SIZES = "sizes.json"  # of a part, until the manifest has them
FEATURE_BLOCK = 65_536  # rows copied at a time


@dataclass(frozen=True)
class RowSpace:
    """Rows of one node type: row = part * stride + offset, trained nodes first, then by index."""

    row: np.ndarray  # [nodes] int64
    members: list[np.ndarray]  # per part: node indices in offset order
    stride: int

    @classmethod
    def of(cls, part: np.ndarray, degree: np.ndarray, parts: int) -> RowSpace:
        """Numbers the nodes: `part` [nodes] and training `degree` [nodes]."""
        order = np.lexsort((np.arange(len(part)), degree == 0, part))
        members = np.split(order, np.searchsorted(part[order], np.arange(1, parts)))
        stride = max(len(nodes) for nodes in members)
        row = np.empty(len(part), np.int64)
        for number, nodes in enumerate(members):
            row[nodes] = number * stride + np.arange(len(nodes))
        return cls(row, members, stride)


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
    parts = int(assignment.user_part.max()) + 1
    user, item = dataset.train()
    user_degree = np.bincount(user, minlength=len(dataset.user_ids))
    item_degree = np.bincount(item, minlength=len(dataset.item_ids))
    users = RowSpace.of(assignment.user_part, user_degree, parts)
    items = RowSpace.of(assignment.item_part, item_degree, parts)
    training = (users.row[user], items.row[item])
    by_user, by_item = _grouped(*training, users.stride, parts), _grouped(*training[::-1], items.stride, parts)
    held_out = {}
    for split, code in (("validation", VALIDATION), ("test", TEST)):
        kept = dataset.split == code
        held_out[split] = _grouped(users.row[dataset.user[kept]], items.row[dataset.item[kept]], users.stride, parts)
    degrees = {"user": _by_row(user_degree, users, parts), "item": _by_row(item_degree, items, parts)}

    def write_part(target: Path, part: int) -> None:
        target.mkdir(parents=True)
        _write_nodes(target / layout.USERS, dataset.user_ids, user_degree, users.members[part])
        _write_nodes(target / layout.ITEMS, dataset.item_ids, item_degree, items.members[part])
        edges = _graph(part, users, items, by_user[part], by_item[part], degrees)
        write_graph(target / layout.GRAPH, edges)
        _write_item_graph(target / layout.ITEM_GRAPH, graph, items, part)
        for split, name in layout.HELD_OUT.items():
            row, other = held_out[split][part]
            write_table(target / name, {"user": pa.array(row), "item": pa.array(other)})
        for name, features in dataset.features.items():
            _write_features(target / layout.features_file(name), features.values, items.members[part])
        sizes = layout.Part(
            users=len(users.members[part]),
            active_users=int((user_degree[users.members[part]] > 0).sum()),
            items=len(items.members[part]),
            active_items=int((item_degree[items.members[part]] > 0).sum()),
            train=len(by_user[part][0]),
            validation=len(held_out["validation"][part][0]),
            test=len(held_out["test"][part][0]),
            inner_edges=int((by_user[part][1] // items.stride == part).sum()),
            halo_users=len(edges.row["user"]) - len(users.members[part]),
            halo_items=len(edges.row["item"]) - len(items.members[part]),
            digests={path.name: layout.sha256(path) for path in sorted(target.iterdir())},
            bytes={path.name: path.stat().st_size for path in sorted(target.iterdir())},
        )
        (target / _SIZES).write_text(sizes.model_dump_json(), encoding="utf-8")

    with replacing(output) as folder:
        targets = [layout.part_dir(folder, part) for part in range(parts)]
        targets[0].parent.mkdir(parents=True)
        for part in tqdm(range(parts), desc="writing parts", unit="part", disable=None):
            write = partial(write_part, part=part)
            if work is None:
                write(targets[part])
            else:
                work.result(targets[part].name, write)
        sizes = []
        for target in targets:
            if work is not None:
                (work.folder / target.name).rename(target)
            sizes.append(layout.Part.model_validate_json((target / _SIZES).read_text(encoding="utf-8")))
            (target / _SIZES).unlink()
        shared = {}
        for name, features in dataset.features.items():
            if features.basis is not None:
                basis = folder / layout.basis_file(name)
                np.save(basis, features.basis)
                shared[basis.name] = layout.sha256(basis)
        manifest = _manifest(dataset, graph, users, items, sizes, shared, settings, statistics)
        (folder / layout.MANIFEST).write_bytes(sealed(manifest.model_dump(mode="json")))


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`: takes its name when the block ends well, and is removed when it does not.

    Raises:
        InputError: `output` is something else than a prepared folder or an empty one.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder, previous = (output.with_name(f".{output.name}.{os.getpid()}.{name}") for name in ("tmp", "old"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        for path in [*folder.rglob("*"), folder]:
            sync(path)
        if output.exists():
            empty = output.is_dir() and not any(output.iterdir())
            if not empty and not (output / layout.MANIFEST).is_file():
                raise InputError(f"{output}: exists and is not a prepared folder; choose another name")
            output.rename(previous)
        folder.rename(output)
        sync(output.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _grouped(row: np.ndarray, other: np.ndarray, stride: int, parts: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs sorted by (row, other) and cut where the part of `row` changes."""
    order = np.lexsort((other, row))
    row, other = row[order], other[order]
    cuts = np.searchsorted(row, np.arange(1, parts) * stride)
    return list(zip(np.split(row, cuts), np.split(other, cuts), strict=True))


def _by_row(degree: np.ndarray, space: RowSpace, parts: int) -> np.ndarray:
    by_row = np.zeros(parts * space.stride, np.int32)
    by_row[space.row] = degree
    return by_row


def _write_nodes(path: Path, ids: pa.Array, degree: np.ndarray, members: np.ndarray) -> None:
    write_table(path, {"id": ids.take(pa.array(members)), "train_degree": pa.array(degree[members])})


def _graph(
    part: int,
    users: RowSpace,
    items: RowSpace,
    by_user: tuple[np.ndarray, np.ndarray],
    by_item: tuple[np.ndarray, np.ndarray],
    degrees: dict[str, np.ndarray],
) -> Graph:
    """Own nodes in offset order, then the halo ascending by row."""
    nodes, edges = {}, {}
    for kind, space, sources in (("item", items, by_user[1]), ("user", users, by_item[1])):
        own = part * space.stride + np.arange(len(space.members[part]), dtype=np.int64)
        remote = sources // space.stride != part
        halo = np.unique(sources[remote])
        local = sources - part * space.stride
        local[remote] = len(own) + np.searchsorted(halo, sources[remote])
        nodes[kind], edges[kind] = np.concatenate([own, halo]), local
    to_user = edges["item"], by_user[0] - part * users.stride
    to_item = edges["user"], by_item[0] - part * items.stride
    return Graph(
        nodes,
        {kind: degrees[kind][rows] for kind, rows in nodes.items()},
        {layout.ITEM_TO_USER: to_user, layout.USER_TO_ITEM: to_item},
    )


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
    sizes: list[layout.Part],
    shared: dict[str, str],
    settings: dict[str, Any],
    statistics: dict[str, float],
) -> layout.Manifest:
    train = sum(part.train for part in sizes)
    return layout.Manifest(
        schema_version=layout.SCHEMA_VERSION,
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
            layout.Modality(name=name, dim=f.values.shape[1], dtype=f.values.dtype.name, source_dim=f.source_dim)
            for name, f in dataset.features.items()
        ],
        split=dataset.split_method,
        user_id_type="string" if pa.types.is_string(dataset.user_ids.type) else "int64",
        item_id_type="string" if pa.types.is_string(dataset.item_ids.type) else "int64",
        counts=dataset.counts,
        settings=settings,
        inputs=dataset.inputs,
        digests=shared,
        statistics={**statistics, **layout.cut(sizes), "item_graph_recall": graph.recall},
        versions={
            "python": platform.python_version(),
            **{n: version(n) for n in ("dgl", "numpy", "pyarrow", "faiss-cpu")},
        },
    )
