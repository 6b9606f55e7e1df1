"""`verify` notices whatever is changed in a prepared folder, and says in which file and row."""

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

from partition import layout
from partition.errors import InputError
from partition.layout import ITEM_TO_USER, USER_TO_ITEM
from partition.part_files import (
    PAIR_SCHEMA,
    Graph,
    node_schema,
    read_graph,
    read_similar,
    read_table,
    write_graph,
    write_similar,
    write_table,
)
from partition.verify import verify
from tests.small import prepare_small, small_dataset

FILES = ["users.arrow", "items.arrow", "graph.dgl", "item_graph.npz", "validation.arrow", "test.arrow"]
PART = 2  # the part that is tampered with


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("original"))


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "prepared"))


def part_file(root: Path, name: str) -> Path:
    return layout.part_dir(root, PART) / name


def change_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / layout.MANIFEST
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def accept_bytes(root: Path, **sizes: int) -> None:
    """Puts the tampered part's digests into the manifest, and changes its sizes by so much."""

    def change(tree: dict[str, Any]) -> None:
        part = tree["parts"][PART]
        part["digests"] = {path.name: layout.sha256(path) for path in layout.part_dir(root, PART).iterdir()}
        part["graph_digest"] = read_graph(part_file(root, layout.GRAPH)).digest()
        for name, by in sizes.items():
            part[name] += by
            if name in tree:
                tree[name] += by
        parts = [layout.Part.model_validate(part) for part in tree["parts"]]
        tree["statistics"].update(layout.cut(parts))

    change_manifest(root, change)


def refused(root: Path) -> str:
    with pytest.raises(InputError) as error:
        verify(root)
    assert "\n" not in str(error.value)
    return str(error.value)


def features(root: Path) -> list[str]:
    return [layout.features_file(modality.name) for modality in layout.read_manifest(root).modalities]


def test_what_was_written_is_whole(original: Path) -> None:
    assert verify(original) == layout.read_manifest(original)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_to_any_file_is_named(damage: str, original: Path, tmp_path: Path) -> None:
    names = FILES + features(original)
    assert sorted(names) == sorted(path.name for path in layout.part_dir(original, PART).iterdir())
    for name in names:
        root = Path(shutil.copytree(original, tmp_path / name))
        path = part_file(root, name)
        data = bytearray(path.read_bytes())
        if damage == "delete":
            path.unlink()
        else:
            data[len(data) // 2] ^= 1
            path.write_bytes(data[:-1] if damage == "truncate" else data)
        words = "no such file" if damage == "delete" else "its bytes changed"
        assert refused(root).startswith(f"{path}: {words}")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"nonsense" * 99, "half"])
def test_files_that_cannot_be_read_are_named(name: str, content: bytes | str, root: Path) -> None:
    path = part_file(root, name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if isinstance(content, str) else content)

    def change(tree: dict[str, Any]) -> None:
        tree["parts"][PART]["digests"][name] = layout.sha256(path)

    change_manifest(root, change)
    assert re.match(re.escape(f"{path}: cannot be read as "), refused(root))


def test_files_and_parts_that_do_not_belong(root: Path) -> None:
    part_file(root, "users.arrow.bak").write_text("")
    assert "users.arrow.bak: is not a file of a part" in refused(root)
    part_file(root, "users.arrow.bak").unlink()
    shutil.copytree(layout.part_dir(root, PART), layout.part_dir(root, 9))
    assert "part-00009: belongs to no part of the manifest" in refused(root)


def numbers(tree: Any, path: tuple = ()) -> list[tuple]:
    """Paths of the numbers in the manifest that say something about the files."""
    if isinstance(tree, dict):
        return [p for key, value in tree.items() for p in numbers(value, (*path, key))]
    if isinstance(tree, list):
        return [p for key, value in enumerate(tree) for p in numbers(value, (*path, key))]
    free = path[0] in ("schema_version", "counts", "settings", "inputs", "versions") or path[-1] == "item_graph_recall"
    return [path] if isinstance(tree, int | float) and not free else []


def test_every_number_of_the_manifest_is_checked(root: Path) -> None:
    text = (root / layout.MANIFEST).read_text()
    paths = numbers(json.loads(text))
    assert ("parts", 0, "halo_users") in paths
    assert ("statistics", "edge_cut") in paths
    for path in paths:
        for by in (-1, 1):
            if path[-1] == "source_dim" and by == 1:
                continue  # features may have been reduced from more
            tree = json.loads(text)
            inner = tree
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] += by
            (root / layout.MANIFEST).write_text(json.dumps(tree))
            with pytest.raises(InputError):
                verify(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["parts"].pop(), "manifest.json: users: "),
        (lambda tree: tree.update(modalities=[]), "manifest.json: modalities: there is none"),
        (lambda tree: tree["modalities"].append(tree["modalities"][0]), "a name occurs twice"),
        (lambda tree: tree["modalities"][0].update(dtype="float16"), "the manifest says float16"),
        (lambda tree: tree["modalities"].pop(), "manifest.json: parts.0.digests: expected"),
        (lambda tree: tree.update(user_id_type="int64"), "users.arrow: has columns id string"),
        (lambda tree: tree.update(item_id_type="string"), "items.arrow: has columns id int64"),
        (lambda tree: tree.update(split="cold_items"), "validation.arrow: row 0: the item is not cold"),
        (
            lambda tree: tree["parts"][1].update(graph_digest="0"),
            "graph.dgl: the graph is not the one that was written",
        ),
        (lambda tree: tree["statistics"].pop("edge_cut"), "manifest.json: statistics.edge_cut: nan, not 0."),
    ],
)
def test_a_changed_manifest(change: Callable[[dict[str, Any]], object], message: str, root: Path) -> None:
    change_manifest(root, change)
    assert message in refused(root)


def change_nodes(root: Path, name: str, change: Callable[[list, np.ndarray], None]) -> None:
    path = part_file(root, name)
    schema = node_schema(layout.read_manifest(root), "user" if name == "users.arrow" else "item")
    table = read_table(path, schema)
    ids, degree = table["id"].to_pylist(), table["train_degree"].to_numpy().copy()
    change(ids, degree)
    write_table(path, {"id": pa.array(ids, schema["id"]), "train_degree": pa.array(degree)})
    accept_bytes(root)


def swap_unequal(_: list, degree: np.ndarray) -> None:
    other = int(np.argmax((degree != degree[0]) & (degree > 0)))
    degree[[0, other]] = degree[[other, 0]]


@pytest.mark.parametrize("name", ["users.arrow", "items.arrow"])
def test_degrees_and_ids(name: str, original: Path, tmp_path: Path) -> None:
    def untrained_first(_: list, degree: np.ndarray) -> None:
        degree[:] = degree[::-1]

    def one_more(_: list, degree: np.ndarray) -> None:
        degree[3] += 1

    def no_id(ids: list, _: np.ndarray) -> None:
        ids[4] = None

    def same_id(ids: list, _: np.ndarray) -> None:
        ids[6] = ids[2]

    def id_of_another_part(ids: list, _: np.ndarray) -> None:
        schema = node_schema(layout.read_manifest(original), name.removesuffix("s.arrow"))
        ids[1] = read_table(layout.part_dir(original, 0) / name, schema)["id"][5].as_py()

    kind = name.removesuffix("s.arrow")
    cases: dict[Callable, str] = {
        swap_unequal: f"graph.dgl: {kind} node 0: its degree is not its part's train_degree",
        one_more: {"user": "users.arrow: train_degree sums to", "item": "graph.dgl: item node 3: its degree"}[kind],
        no_id: f"part-00002/{name}: column 'id', row 4: null",
        same_id: f"part-00002/{name}: row 6: id ",
        id_of_another_part: f"part-00002/{name}: row 1: id ",
    }
    for change, message in cases.items():
        root = Path(shutil.copytree(original, tmp_path / change.__name__))
        change_nodes(root, name, change)
        text = refused(root)
        # A degree can be contradicted by the halo of a part that is looked at before.
        assert message in text or (change in (swap_unequal, one_more) and "its degree is not its part's" in text)
    root = Path(shutil.copytree(original, tmp_path / "order"))
    degree = read_table(part_file(root, name), node_schema(layout.read_manifest(root), kind))["train_degree"].to_numpy()
    if (degree == 0).any():
        change_nodes(root, name, untrained_first)
        assert f"{name}: row 0: the " in refused(root)


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
        own = int((graph.row[relation[0]] // (15 if relation[0] == "item" else 30) == PART).sum())
        for edge in np.flatnonzero(source < own):
            taken = source[destination == destination[edge]]
            free = np.setdiff1d(np.arange(own), taken)
            if len(free):
                source[edge] = free[0]
                order = np.lexsort((graph.row[relation[0]][source], destination))
                return with_edges(graph, relation, source[order], destination)
        raise AssertionError("no interaction to rewire")

    name = relation[1]
    other = USER_TO_ITEM[1] if relation == ITEM_TO_USER else ITEM_TO_USER[1]
    cases = {
        removed: f"part-00002/graph.dgl: {kind} node ",
        doubled: f"part-00002/graph.dgl: {name} edge ",
        out_of_order: f"part-00002/graph.dgl: {name} edge 1: is not behind the one before",
        into_the_halo: f"part-00002/graph.dgl: {name} edge ",
        rewired: f"part-00002/graph.dgl: no {other} edge for user row ",
    }
    for change, message in cases.items():
        root = Path(shutil.copytree(original, tmp_path / change.__name__))
        assert message in change_graph(root, change)


@pytest.mark.parametrize(("kind", "halo"), [("user", "halo_users"), ("item", "halo_items")])
def test_halo(kind: str, halo: str, original: Path, tmp_path: Path) -> None:
    manifest = layout.read_manifest(original)
    stride = manifest.user_stride if kind == "user" else manifest.item_stride

    def with_rows(graph: Graph, row: np.ndarray, degree: np.ndarray) -> Graph:
        return replace(graph, row={**graph.row, kind: row}, degree={**graph.degree, kind: degree})

    def unused(graph: Graph) -> Graph:
        row = graph.row[kind]
        here = set(row.tolist())
        owner = read_graph(layout.part_dir(original, 3) / layout.GRAPH)
        missing = [
            (r, d)
            for r, d in zip(owner.row[kind], owner.degree[kind], strict=True)
            if r >= 3 * stride and r not in here
        ]
        if not missing:  # all are needed: repeat the last one, which is just as wrong
            return with_rows(graph, np.append(row, row[-1]), np.append(graph.degree[kind], graph.degree[kind][-1]))
        extra = max(missing)
        at = int(np.searchsorted(row[row // stride != PART], extra[0])) + int((row // stride == PART).sum())
        moved = {
            r: tuple(
                np.where(ends >= at, ends + 1, ends) if r[end] == kind else ends for end, ends in ((0, e[0]), (2, e[1]))
            )
            for r, e in graph.edges.items()
        }
        return replace(
            with_rows(graph, np.insert(row, at, extra[0]), np.insert(graph.degree[kind], at, extra[1])), edges=moved
        )

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
        (unused, "", 1),
        (swapped, "the halo does not ascend by row", 0),
        (out_of_range, "is not a node of another part", 0),
        (own_row, "is not a node of another part", 0),
        (shifted, "is not the row of this part at this offset", 0),
        (degree_of_another, "its degree is not its part's train_degree", 0),
    ]
    for change, message, more in cases:
        root = Path(shutil.copytree(original, tmp_path / change.__name__))
        text = change_graph(root, change, **{halo: more})
        assert re.search(rf"part-00002/graph\.dgl: {kind} node \d+: .*{message}", text), (change.__name__, text)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out(split: str, original: Path, tmp_path: Path) -> None:
    manifest = layout.read_manifest(original)
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
    root = prepare_small(tmp_path)
    manifest = layout.read_manifest(root)
    part = next(number for number, part in enumerate(manifest.parts) if part.active_users < part.users)
    path = layout.part_dir(root, part) / "test.arrow"
    table = read_table(path, PAIR_SCHEMA)
    user = table["user"].to_numpy().copy()
    user[-1] = part * manifest.user_stride + manifest.parts[part].users - 1
    write_table(path, {"user": pa.array(user), "item": table["item"].combine_chunks()})
    change_manifest(root, lambda tree: tree["parts"][part]["digests"].update({path.name: layout.sha256(path)}))
    assert refused(root) == f"{path}: row {len(user) - 1}: the user has no training interaction"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a["weight"].__setitem__(slice(0, 2), a["weight"][:2] * 1.001),
            "item 0: its weights do not sum to 1",
        ),
        (lambda a: a["weight"].__setitem__(3, np.nan), "edge 3: its weight is not a number above 0"),
        (lambda a: a["weight"].__setitem__(3, -a["weight"][3]), "edge 3: its weight is not a number above 0"),
        (lambda a: a["neighbour"].__setitem__(-1, 10**6), "its neighbour is no item row"),
        (lambda a: a["neighbour"].__setitem__(0, -1), "edge 0: its neighbour is no item row"),
        (
            lambda a: a["neighbour"].__setitem__(slice(0, 2), a["neighbour"][1::-1].copy()),
            "edge 1: its neighbour is not behind",
        ),
        (lambda a: a.update(indptr=a["indptr"][:-1]), "indptr: 15 numbers for 15 items"),
        (lambda a: a["indptr"].__setitem__(-1, a["indptr"][-1] + 1), "indptr: does not span"),
        (lambda a: a["indptr"].__setitem__(4, a["indptr"][5]), "item 4: has no neighbours"),
        (lambda a: a.update(weight=a["weight"].astype(np.float64)), "weight: float64"),
        (lambda a: a.update(indptr=a["indptr"].astype(np.int32)), "indptr: int32"),
    ],
)
def test_item_graph(change: Callable[[dict[str, np.ndarray]], object], message: str, root: Path) -> None:
    path = part_file(root, layout.ITEM_GRAPH)
    with np.load(path) as stored:
        arrays = dict(stored)
    change(arrays)
    np.savez(path, **arrays)
    accept_bytes(root)
    assert message in refused(root)
    assert refused(root).startswith(f"{path}: ")


def test_an_item_that_is_not_its_own_neighbour(root: Path) -> None:
    path = part_file(root, layout.ITEM_GRAPH)
    similar = read_similar(path)
    own = PART * layout.read_manifest(root).item_stride + 2
    here = slice(similar.indptr[2], similar.indptr[3])
    others = np.setdiff1d(np.arange(50), similar.neighbour[here])
    row = np.where(similar.neighbour[here] == own, others[0], similar.neighbour[here])
    order = np.argsort(row)
    similar.neighbour[here], similar.weight[here] = row[order], similar.weight[here][order]
    write_similar(path, similar)
    accept_bytes(root)
    assert refused(root) == f"{path}: item 2: is not its own neighbour"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(bad: float, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.verify_part.FEATURE_BLOCK", 30)
    path = part_file(root, features(root)[1])
    values = np.load(path)
    values[11, 3] = bad
    np.save(path, values)
    accept_bytes(root)
    assert refused(root) == f"{path}: row 11: not finite"


@pytest.mark.parametrize(
    "change", [lambda v: v[:-1], lambda v: v[:, :-1], lambda v: v.astype(np.float16), lambda v: v[0]]
)
def test_features_of_another_shape(change: Callable[[np.ndarray], np.ndarray], root: Path) -> None:
    path = part_file(root, features(root)[0])
    np.save(path, change(np.load(path)))
    accept_bytes(root)
    assert re.match(re.escape(f"{path}: ") + r"float\d+ \(.*\); the manifest says float", refused(root))


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
        tree["statistics"].update(layout.cut([layout.Part.model_validate(p) for p in tree["parts"]]))

    change_manifest(root, change)
    assert "graph.dgl: " in refused(root)
