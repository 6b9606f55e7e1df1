"""Weights of interactions in a prepared folder: written per edge and node, checked by `verify`, absent without them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from partition.errors import InputError
from partition.folder import layout
from partition.folder.arrays import (
    KINDS,
    PAIR_SCHEMA,
    RELATIONS,
    Graph,
    Relation,
    Weights,
    node_schema,
    read_graph,
    read_table,
    write_graph,
)
from partition.folder.layout import ITEM_TO_USER, USER_TO_ITEM
from partition.folder.manifest import Manifest, read_manifest
from partition.folder.stats import describe
from partition.folder.verify import verify
from partition.folder.verify_part import interactions
from partition.transform.dataset import TRAIN, Dataset
from tests.support.small import prepare_small, weighted_dataset
from tests.support.tamper import PART, accept_bytes, change_manifest, part_file, refused


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("weighted"), weighted=True)


@pytest.fixture
def root(weighted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(weighted, tmp_path / "prepared"))


def node_index(root: Path, manifest: Manifest, dataset: Dataset) -> dict[str, np.ndarray]:
    """Kind -> [rows] index in the data set of every global row; -1 for padding."""
    found = {}
    for kind, stride, ids in (
        ("user", manifest.user_stride, dataset.user_ids),
        ("item", manifest.item_stride, dataset.item_ids),
    ):
        index = np.full(manifest.num_parts * stride, -1)
        position = {key: number for number, key in enumerate(ids.to_pylist())}
        for part in range(manifest.num_parts):
            table = read_table(layout.part_dir(root, part) / f"{kind}s.arrow", node_schema(manifest, kind))
            own = [position[key] for key in table["id"].to_pylist()]
            index[part * stride :][: len(own)] = own
        found[kind] = index
    return found


@pytest.mark.parametrize("parts", [1, 4])
def test_every_edge_and_node_has_its_weight(parts: int, tmp_path: Path) -> None:
    dataset = weighted_dataset()
    assert dataset.weight is not None
    root = prepare_small(tmp_path, parts=parts, dataset=dataset)
    manifest = verify(root)
    assert manifest.weighted
    train = dataset.split == TRAIN
    of_pair = dict(zip(zip(dataset.user[train], dataset.item[train], strict=True), dataset.weight[train], strict=True))
    degree = {
        "user": np.bincount(dataset.user[train], dataset.weight[train], len(dataset.user_ids)),
        "item": np.bincount(dataset.item[train], dataset.weight[train], len(dataset.item_ids)),
    }
    index, edges = node_index(root, manifest, dataset), 0
    for part in range(parts):
        graph = read_graph(layout.part_dir(root, part) / layout.GRAPH, weighted=True)
        assert graph.weights is not None
        for relation in RELATIONS:
            user, item = interactions(graph, relation)
            pairs = zip(index["user"][user], index["item"][item], strict=True)
            np.testing.assert_array_equal(graph.weights.edge[relation], [of_pair[pair] for pair in pairs])
            edges += len(user)
        for kind in KINDS:  # of the full graph, for the halo as well
            wanted = degree[kind][index[kind][graph.row[kind]]]
            np.testing.assert_allclose(graph.weights.degree[kind], wanted, rtol=1e-12)
    assert edges == 2 * manifest.train
    assert len({weight.tobytes() for weight in of_pair.values()}) > manifest.train / 2


def test_weights_change_nothing_else(weighted: Path, tmp_path: Path) -> None:
    """Parts, rows, edges and held-out interactions are those without weights; those have no weight in the folder."""
    plain = prepare_small(tmp_path)
    assert not read_manifest(plain).weighted
    for part in range(4):
        for path in sorted(layout.part_dir(plain, part).iterdir()):
            other = layout.part_dir(weighted, part) / path.name
            if path.name != layout.GRAPH:
                assert other.read_bytes() == path.read_bytes(), path.name
                continue
            with np.load(path) as before, np.load(other) as after:
                added = {f"{kind}_weighted_degree" for kind in KINDS} | {"rates_weight", "rated_by_weight"}
                assert set(after.files) - set(before.files) == added
                assert all(np.array_equal(before[name], after[name]) for name in before.files)
    assert read_table(part_file(weighted, "test.arrow"), PAIR_SCHEMA).column_names == ["user", "item"]


def test_blocks_do_not_matter(weighted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.columns_on_disk.BLOCK", 97)
    assert read_manifest(prepare_small(tmp_path, weighted=True)).digest() == read_manifest(weighted).digest()


def changed(root: Path, change: Callable[[Weights], object]) -> str:
    """The refusal of the folder with changed weights in one part."""
    path = part_file(root, layout.GRAPH)
    graph = read_graph(path, weighted=True)
    assert graph.weights is not None
    change(graph.weights)
    write_graph(path, graph)
    accept_bytes(root)
    return refused(root)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation[1])
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_weights_that_are_no_weights(bad: float, relation: Relation, root: Path) -> None:
    text = changed(root, lambda weights: weights.edge[relation].__setitem__(7, bad))
    assert text == f"{part_file(root, layout.GRAPH)}: {relation[1]} edge 7: its weight is not a number above 0"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [2.0, np.nan])
def test_weighted_degrees_that_are_not_the_sum(kind: str, bad: float, root: Path) -> None:
    text = changed(root, lambda weights: weights.degree[kind].__setitem__(2, weights.degree[kind][2] * bad))
    assert f"graph.npz: {kind} node 2: its weighted degree is not the sum of its " in text


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_degrees_of_the_halo(kind: str, root: Path) -> None:
    def change(weights: Weights) -> None:
        weights.degree[kind][-1] = np.nextafter(weights.degree[kind][-1], np.inf)

    last = len(read_graph(part_file(root, layout.GRAPH), weighted=True).row[kind]) - 1
    text = changed(root, change)
    assert text.endswith(f"graph.npz: {kind} node {last}: its weighted degree is not that in its own part")


@pytest.mark.parametrize("relation", [ITEM_TO_USER, USER_TO_ITEM], ids=lambda relation: relation[1])
def test_both_directions_have_the_same_weight(relation: Relation, root: Path) -> None:
    """Two weights of one node are swapped: its weighted degree stays as it is."""
    graph = read_graph(part_file(root, layout.GRAPH), weighted=True)
    assert graph.weights is not None
    weight = graph.weights.edge[relation]
    edge = int(np.flatnonzero(np.diff(graph.edges[relation][1]) == 0)[0])

    def swap(weights: Weights) -> None:
        weights.edge[relation][[edge, edge + 1]] = weight[[edge + 1, edge]]

    user, item = (rows[edge : edge + 2].tolist() for rows in interactions(graph, relation))
    text = changed(root, swap)
    found = re.search(r"graph\.npz: user row (\d+) and item row (\d+): weight (\S+), but (\S+) in .*graph\.npz$", text)
    assert found is not None, text
    assert (int(found[1]), int(found[2])) in set(zip(user, item, strict=True))
    assert {found[3], found[4]} == {f"{float(value):g}" for value in weight[[edge, edge + 1]]}


def test_a_weighted_manifest_without_weights_and_the_reverse(root: Path, tmp_path: Path) -> None:
    change_manifest(root, lambda tree: tree.update(weighted=False))
    assert "graph.npz: item_weighted_degree: does not belong in a graph of this folder" in refused(root, "array.shape")
    plain = prepare_small(tmp_path / "plain")
    change_manifest(plain, lambda tree: tree.update(weighted=True))
    assert "graph.npz: cannot be read as a graph: " in refused(plain, "file.unreadable")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: replace(w, edge={**w.edge, USER_TO_ITEM: w.edge[USER_TO_ITEM][1:]}), "rates edges: not one weight"),
        (lambda w: replace(w, degree={**w.degree, "user": w.degree["user"][1:]}), "user nodes: not one row and one"),
        (lambda w: replace(w, degree={**w.degree, "item": w.degree["item"].astype(np.float32)}), "item_weighted_degr"),
        (lambda w: replace(w, edge={**w.edge, USER_TO_ITEM: w.edge[USER_TO_ITEM].astype(float)}), "rates_weight: flo"),
    ],
)
def test_weights_of_another_shape(change: Callable[[Weights], Weights], message: str, root: Path) -> None:
    path = part_file(root, layout.GRAPH)
    graph: Graph = read_graph(path, weighted=True)
    assert graph.weights is not None
    write_graph(path, replace(graph, weights=change(graph.weights)))
    with pytest.raises(InputError, match=re.escape(f"{path}: {message}")) as error:
        read_graph(path, weighted=True)
    assert error.value.code == "array.shape"


def test_stats_say_that_a_folder_is_weighted(
    weighted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for root, said in ((weighted, True), (prepare_small(tmp_path), False)):
        describe(root, None)
        assert ("interactions are weighted" in capsys.readouterr().out) == said


def test_text_ids_are_large_strings(root: Path) -> None:
    path = layout.part_dir(root, PART) / layout.USERS
    with pa.memory_map(str(path)) as source:
        assert pa.ipc.open_file(source).schema.field("id").type == pa.large_string()
