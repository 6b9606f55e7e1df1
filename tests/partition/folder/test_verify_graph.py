"""`verify` notices edges, halos and held-out interactions that are wrong although every digest is right."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partition.folder import layout
from partition.folder.arrays import (
    PAIR_SCHEMA,
    RELATIONS,
    Graph,
    read_graph,
    read_table,
    write_graph,
    write_table,
)
from partition.folder.layout import ITEM_TO_USER, USER_TO_ITEM
from partition.folder.manifest import Part, cut_statistics, read_manifest
from tests.support.small import prepare_small, small_dataset
from tests.support.tamper import (
    PART,
    accept_bytes,
    accept_file,
    change_manifest,
    part_file,
    prepare_with_idle_nodes,
    refused,
)


def change_graph(root: Path, change: Callable[[Graph], Graph], **sizes: int) -> str:
    path = part_file(root, layout.GRAPH)
    write_graph(path, change(read_graph(path)))
    accept_bytes(root, **sizes)
    return refused(root)


def with_edges(graph: Graph, relation: tuple, source: np.ndarray, destination: np.ndarray) -> Graph:
    return replace(graph, edges={**graph.edges, relation: (source, destination)})


@pytest.mark.parametrize(("relation", "kind"), [(ITEM_TO_USER, "user"), (USER_TO_ITEM, "item")])
def test_edges(relation: tuple, kind: str, original: Path, tmp_path: Path) -> None:
    def removed(graph: Graph) -> Graph:
        return with_edges(graph, relation, *(np.delete(ends, 5) for ends in graph.edges[relation]))

    def doubled(graph: Graph) -> Graph:
        source, destination = graph.edges[relation]
        order = np.flatnonzero(np.diff(destination) == 0)[0]  # its successor becomes its copy
        return with_edges(
            graph, relation, np.where(np.arange(len(source)) == order + 1, source[order], source), destination
        )

    def out_of_order(graph: Graph) -> Graph:
        return with_edges(graph, relation, *(ends[::-1].copy() for ends in graph.edges[relation]))

    def into_the_halo(graph: Graph) -> Graph:
        source, destination = (ends.copy() for ends in graph.edges[relation])
        destination[-1] = len(graph.row[kind]) - 1
        return with_edges(graph, relation, source, destination)

    def rewired(graph: Graph) -> Graph:
        """One end of an interaction becomes another own node; all counts of this part stay as they are."""
        source, destination = (ends.copy() for ends in graph.edges[relation])
        stride = manifest.item_stride if relation[0] == "item" else manifest.user_stride
        own = int((graph.row[relation[0]] // stride == PART).sum())
        for edge in np.flatnonzero(source < own):
            taken = source[destination == destination[edge]]
            free = np.setdiff1d(np.arange(own), taken)
            if len(free):
                source[edge] = free[0]
                order = np.lexsort((graph.row[relation[0]][source], destination))
                return with_edges(graph, relation, source[order], destination)
        raise AssertionError("no interaction to rewire")

    manifest, name = read_manifest(original), relation[1]
    cases = {
        removed: f"part-00002/graph.npz: {kind} node ",
        doubled: f"part-00002/graph.npz: {name} edge ",
        out_of_order: f"part-00002/graph.npz: {name} edge 1: is not behind the one before",
        into_the_halo: f"part-00002/graph.npz: {name} edge ",
        rewired: "part-00002/graph.npz: no rates edge for user row ",
    }
    for change, message in cases.items():
        root = Path(shutil.copytree(original, tmp_path / change.__name__))
        assert message in change_graph(root, change)


@pytest.mark.parametrize(("kind", "halo"), [("user", "halo_users"), ("item", "halo_items")])
def test_halo(kind: str, halo: str, original: Path, tmp_path: Path) -> None:
    manifest = read_manifest(original)
    stride = manifest.user_stride if kind == "user" else manifest.item_stride
    idle = {"user": lambda part: part.active_users < part.users, "item": lambda part: part.active_items < part.items}

    def with_rows(graph: Graph, row: np.ndarray, degree: np.ndarray) -> Graph:
        return replace(graph, row={**graph.row, kind: row}, degree={**graph.degree, kind: degree})

    def unused(graph: Graph) -> Graph:
        """A node without interactions goes into the halo, at its place."""
        part = next(n for n, p in enumerate(manifest.parts) if idle[kind](p) and n != PART)
        extra = part * stride + (manifest.parts[part].users if kind == "user" else manifest.parts[part].items) - 1
        row = graph.row[kind]
        own = int((row // stride == PART).sum())
        at = own + int(np.searchsorted(row[own:], extra))
        relation = next(relation for relation in RELATIONS if relation[0] == kind)
        source, destination = graph.edges[relation]
        moved = with_edges(graph, relation, np.where(source >= at, source + 1, source), destination)
        return with_rows(moved, np.insert(row, at, extra), np.insert(graph.degree[kind], at, 0))

    def swapped(graph: Graph) -> Graph:
        row = graph.row[kind].copy()
        row[[-1, -2]] = row[[-2, -1]]
        return with_rows(graph, row, graph.degree[kind])

    def out_of_range(graph: Graph) -> Graph:
        return with_rows(graph, np.append(graph.row[kind][:-1], 4 * stride), graph.degree[kind])

    def own_row(graph: Graph) -> Graph:
        return with_rows(graph, np.append(graph.row[kind][:-1], PART * stride), graph.degree[kind])

    def shifted(graph: Graph) -> Graph:
        row = graph.row[kind].copy()
        row[[0, 1]] = row[[1, 0]]
        return with_rows(graph, row, graph.degree[kind])

    def degree_of_another(graph: Graph) -> Graph:
        degree = graph.degree[kind].copy()
        degree[-1] += 1
        return with_rows(graph, graph.row[kind], degree)

    cases: list[tuple[Callable, str, int]] = [
        (unused, "is in the halo, but no edge needs it", 1),
        (swapped, "the halo does not ascend by row", 0),
        (out_of_range, "is not a node of another part", 0),
        (own_row, "is not a node of another part", 0),
        (shifted, "is not the row of this part at this offset", 0),
        (degree_of_another, "its degree is not its part's train_degree", 0),
    ]
    for change, message, more in cases:
        root = Path(shutil.copytree(original, tmp_path / change.__name__))
        text = change_graph(root, change, **{halo: more})
        assert re.search(rf"part-00002/graph\.npz: {kind} node \d+: .*{message}", text), (change.__name__, text)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out(split: str, original: Path, tmp_path: Path) -> None:
    manifest = read_manifest(original)
    name = f"{split}.arrow"
    other = read_table(part_file(original, "test.arrow" if split == "validation" else "validation.arrow"), PAIR_SCHEMA)
    graph = read_graph(part_file(original, layout.GRAPH))
    source, destination = graph.edges[ITEM_TO_USER]
    trained = int(graph.row["user"][destination[0]]), int(graph.row["item"][source[0]])
    held_out = other["user"][0].as_py(), other["item"][0].as_py()
    cases: list[tuple[str, Callable[[list], list], str]] = [
        ("training", lambda pairs: sorted([*pairs[1:], trained]), r"row \d+: is a training interaction as well"),
        ("both", lambda pairs: sorted([*pairs[1:], held_out]), r"row \d+: is a (validation|test) interaction as well"),
        ("twice", lambda pairs: [pairs[0], *pairs[:-1]], r"row 1: is not behind the one before"),
        ("order", lambda pairs: pairs[::-1], r"row 1: is not behind the one before"),
        ("stranger", lambda pairs: [(0, pairs[0][1]), *pairs[1:]], "row 0: the user is not of this part"),
        ("padding", lambda pairs: [*pairs[:-1], (pairs[-1][0], manifest.item_rows)], "there is no such item row"),
        ("fewer", lambda pairs: pairs[1:], r"\d+ rows; the manifest says \d+"),
    ]
    for case, change, message in cases:
        root = Path(shutil.copytree(original, tmp_path / case))
        path = part_file(root, name)
        table = read_table(path, PAIR_SCHEMA)
        user, item = zip(
            *change(list(zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True))), strict=True
        )
        write_table(path, {"user": pa.array(user, pa.int64()), "item": pa.array(item, pa.int64())})
        accept_bytes(root)
        text = refused(root)
        assert re.search(
            rf"part-00002/(validation|test)\.arrow: .*{message}|part-00002/{split}\.arrow: {message}", text
        )


def test_a_held_out_user_without_training_interaction(tmp_path: Path) -> None:
    root = prepare_with_idle_nodes(tmp_path)
    manifest = read_manifest(root)
    part = next(number for number, part in enumerate(manifest.parts) if part.active_users < part.users)
    path = layout.part_dir(root, part) / "test.arrow"
    table = read_table(path, PAIR_SCHEMA)
    user = table["user"].to_numpy().copy()
    user[-1] = part * manifest.user_stride + manifest.parts[part].users - 1
    write_table(path, {"user": pa.array(user), "item": table["item"].combine_chunks()})
    accept_file(root, path)
    assert refused(root) == f"{path}: row {len(user) - 1}: the user has no training interaction"


def test_another_data_set_of_the_same_size_is_noticed(root: Path, tmp_path: Path) -> None:
    """One part exchanged for that of another data set, with all its digests and sizes: the parts do not fit."""
    other = prepare_small(tmp_path / "other", dataset=small_dataset(seed=1))
    shutil.rmtree(layout.part_dir(root, PART))
    shutil.copytree(layout.part_dir(other, PART), layout.part_dir(root, PART))
    part = json.loads((other / layout.MANIFEST).read_text())["parts"][PART]

    def change(tree: dict[str, Any]) -> None:
        for name in ("users", "items", "train", "validation", "test"):
            tree[name] += part[name] - tree["parts"][PART][name]
        tree["parts"][PART] = part
        tree["statistics"].update(cut_statistics([Part.model_validate(p) for p in tree["parts"]]))

    change_manifest(root, change)
    assert "graph.npz: " in refused(root)
