"""DGL loads every part of an export, and finds in it what the prepared folder holds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from partition.export.dgl import CONFIG
from partition.export.options import ExportFormat, ExportOptions
from partition.export.run import export
from partition.folder import layout
from partition.folder.arrays import read_graph
from partition.folder.manifest import read_manifest
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Dataset
from tests.support.small import mask_features, prepare_small, small_dataset, weighted_dataset

os.environ.setdefault("DGLBACKEND", "pytorch")
PARTS = 3
RELATIONS = [("item", "rated_by", "user"), ("user", "rates", "item")]


@dataclass(frozen=True)
class Loaded:
    """All parts as DGL loads them: graph, node features, edge features, partition book, name, node and edge types."""

    folder: Path
    dataset: Dataset
    prepared: Path
    parts: list[Any]

    @cached_property
    def ids(self) -> dict[str, list[Any]]:
        """External ids by number within the type."""
        tables = {
            kind: [pq.read_table(self.folder / f"part{part}" / f"{kind}s.parquet") for part in range(len(self.parts))]
            for kind in ("user", "item")
        }
        for kind, found in tables.items():
            numbers = np.concatenate([table["node"].to_numpy() for table in found])
            np.testing.assert_array_equal(numbers, np.arange(len(getattr(self.dataset, f"{kind}_ids"))))
        return {kind: [i for table in found for i in table["id"].to_pylist()] for kind, found in tables.items()}

    @cached_property
    def number(self) -> dict[str, np.ndarray]:
        """Index in the data set by number within the type."""
        return {
            kind: np.array([getattr(self.dataset, f"{kind}_ids").to_pylist().index(i) for i in ids])
            for kind, ids in self.ids.items()
        }


def load(folder: Path, parts: int) -> Loaded:
    from dgl.distributed import load_partition

    dataset = mask_features(weighted_dataset(small_dataset(modalities=3)))  # float32, float16, float64
    prepared = prepare_small(folder, parts=parts, dataset=dataset)
    output = folder / "exported"
    lines = export(ExportOptions(prepared=prepared, format=ExportFormat.DGL, output=output))
    assert any("part_config.json" in line for line in lines)
    config = str(output / "part_config.json")
    return Loaded(output, dataset, prepared, [load_partition(config, part) for part in range(parts)])


@pytest.fixture(scope="module", params=[PARTS, 1])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGL_DIST_DEBUG", "1")  # DGL compares the parts with the partition book
        return load(tmp_path_factory.mktemp("dgl"), request.param)


def test_name_and_types(loaded: Loaded) -> None:
    for _, _, _, book, name, nodes, edges in loaded.parts:
        assert name == "small"
        assert nodes == ["item", "user"]
        assert edges == RELATIONS
        assert book.num_partitions() == len(loaded.parts)


def test_every_training_interaction_is_in_both_directions(loaded: Loaded) -> None:
    """Once over all parts, in the part of its destination."""
    dataset, number = loaded.dataset, loaded.number
    train = dataset.split == TRAIN
    wanted = set(zip(dataset.user[train].tolist(), dataset.item[train].tolist(), strict=True))
    for type_number, relation in enumerate(RELATIONS):
        found = []
        for part, (graph, _, _, book, *_) in enumerate(loaded.parts):
            chosen = graph.edata["_TYPE"] == type_number
            ends = [graph.ndata["_ID"][end[chosen]] for end in graph.edges()]
            kinds, numbers = zip(*(book.map_to_per_ntype(end) for end in ends), strict=True)
            for kind, name in zip(kinds, (relation[0], relation[2]), strict=True):
                assert (kind == ["item", "user"].index(name)).all()
            assert (book.nid2partid(ends[1]) == part).all()
            rows = [number[kind][end.numpy()] for kind, end in zip((relation[0], relation[2]), numbers, strict=True)]
            user, item = rows if relation[0] == "user" else rows[::-1]
            found += list(zip(user.tolist(), item.tolist(), strict=True))
        assert len(found) == len(wanted)
        assert set(found) == wanted


def test_flags_and_owners(loaded: Loaded) -> None:
    manifest = read_manifest(loaded.prepared)
    for part, (graph, _, _, book, *_) in enumerate(loaded.parts):
        sizes = manifest.parts[part]
        inner = graph.ndata["inner_node"].bool()
        assert int(inner.sum()) == sizes.users + sizes.items
        assert int((~inner).sum()) == sizes.halo_users + sizes.halo_items
        owner = book.nid2partid(graph.ndata["_ID"])
        assert (owner == graph.ndata["part_id"]).all()
        assert ((owner == part) == inner).all()
        kinds, _ = book.map_to_per_ntype(graph.ndata["_ID"])
        assert (kinds == graph.ndata["_TYPE"]).all()
        assert graph.edata["inner_edge"].bool().all()
        assert (book.eid2partid(graph.edata["_ID"]) == part).all()
        kinds, _ = book.map_to_per_etype(graph.edata["_ID"])
        assert (kinds == graph.edata["_TYPE"]).all()
        # DGL finds a node or an edge by its number less that of the first one of the part.
        local = book.nid2localnid(graph.ndata["_ID"][inner], part)
        np.testing.assert_array_equal(local.numpy(), np.flatnonzero(inner.numpy()))
        local = book.eid2localeid(graph.edata["_ID"], part)
        np.testing.assert_array_equal(local.numpy(), np.arange(graph.num_edges()))


def test_numbers_are_those_of_all_nodes_and_edges(loaded: Loaded) -> None:
    train = int((loaded.dataset.split == TRAIN).sum())
    edges = np.concatenate([graph.edata["_ID"].numpy() for graph, *_ in loaded.parts])
    np.testing.assert_array_equal(np.sort(edges), np.arange(2 * train))
    nodes = [graph.ndata["_ID"][graph.ndata["inner_node"].bool()].numpy() for graph, *_ in loaded.parts]
    np.testing.assert_array_equal(np.concatenate(nodes), np.arange(len(loaded.ids["user"]) + len(loaded.ids["item"])))


def test_edges_are_in_the_order_of_the_folder(loaded: Loaded) -> None:
    for part, (graph, *_) in enumerate(loaded.parts):
        prepared = read_graph(layout.part_dir(loaded.prepared, part) / layout.GRAPH, weighted=True)
        lengths = [len(prepared.edges[relation][0]) for relation in RELATIONS]
        np.testing.assert_array_equal(graph.edata["_TYPE"].numpy(), np.repeat([0, 1], lengths))


def test_features(loaded: Loaded) -> None:
    first = 0
    for part, (_, nodes, edges, book, *_) in enumerate(loaded.parts):
        assert set(nodes) == {f"item/{kind}{name}" for name in loaded.dataset.features for kind in ("", "missing_")}
        assert set(edges) == {":".join(relation) + "/weight" for relation in RELATIONS}
        own = loaded.number["item"][first : first + len(book.partid2nids(part, "item"))]
        first += len(own)
        for name, features in loaded.dataset.features.items():
            values = nodes[f"item/{name}"].numpy()
            assert values.dtype == features.values.dtype
            np.testing.assert_array_equal(values, features.values[own])
            missing = nodes[f"item/missing_{name}"].numpy()
            np.testing.assert_array_equal(missing, loaded.dataset.missing[name][own])


def test_weights_of_edges(loaded: Loaded) -> None:
    dataset, train = loaded.dataset, loaded.dataset.split == TRAIN
    assert dataset.weight is not None
    keys = zip(dataset.user[train].tolist(), dataset.item[train].tolist(), strict=True)
    wanted = dict(zip(keys, dataset.weight[train].tolist(), strict=True))
    for graph, _, edges, book, *_ in loaded.parts:
        for number, relation in enumerate(RELATIONS):
            chosen = graph.edata["_TYPE"] == number
            row = {}
            for kind, end in zip((relation[0], relation[2]), graph.edges(), strict=True):
                _, nodes = book.map_to_per_ntype(graph.ndata["_ID"][end[chosen]])
                row[kind] = loaded.number[kind][nodes.numpy()].tolist()
            weights = edges[":".join(relation) + "/weight"].tolist()
            assert weights == [wanted[pair] for pair in zip(row["user"], row["item"], strict=True)]


@pytest.mark.parametrize(("name", "label"), [("validation", VALIDATION), ("test", TEST)])
def test_held_out_interactions(loaded: Loaded, name: str, label: int) -> None:
    dataset, found = loaded.dataset, []
    for part, (_, _, _, book, *_) in enumerate(loaded.parts):
        table = pq.read_table(loaded.folder / f"part{part}" / f"{name}.parquet")
        assert set(table["user"].to_pylist()) <= set(book.partid2nids(part, "user").tolist())
        user, item = (loaded.number[kind][table[kind].to_numpy()] for kind in ("user", "item"))
        found += list(zip(user.tolist(), item.tolist(), strict=True))
    kept = dataset.split == label
    assert sorted(found) == list(zip(dataset.user[kept].tolist(), dataset.item[kept].tolist(), strict=True))


def test_files_have_the_fields_that_dgl_writes(tmp_path: Path, loaded: Loaded) -> None:
    """Compared with a graph of the same types that DGL partitions itself."""
    import dgl
    import torch
    from dgl.distributed import load_partition, partition_graph

    dgl.seed(1)
    ends = torch.arange(40), torch.arange(40).flip(0)
    graph = dgl.heterograph({RELATIONS[0]: ends, RELATIONS[1]: ends[::-1]})
    for relation in RELATIONS:
        graph.edges[relation].data["weight"] = torch.ones(40)
    for name, features in loaded.dataset.features.items():
        graph.nodes["item"].data[name] = torch.from_numpy(features.values[:40])
        graph.nodes["item"].data[f"missing_{name}"] = torch.zeros(40, dtype=torch.uint8)
    partition_graph(graph, "small", 2, str(tmp_path), part_method="random")
    theirs, ours = (json.loads(path.read_text()) for path in (tmp_path / "small.json", loaded.folder / CONFIG))
    assert {key for key in theirs if "part-" not in key} == {key for key in ours if "part-" not in key}
    for name in ("ntypes", "etypes", "part-0", "halo_hops", "graph_name"):
        assert ours[name] == theirs[name]
    expected, expected_nodes, expected_edges, *_ = load_partition(str(tmp_path / "small.json"), 0)
    found, nodes, edges, *_ = loaded.parts[0]
    for data, wanted in ((found.ndata, expected.ndata), (found.edata, expected.edata)):
        assert {name: values.dtype for name, values in data.items()} == {
            name: values.dtype for name, values in wanted.items()
        }
    for values, wanted in ((nodes, expected_nodes), (edges, expected_edges)):
        assert {name: value.dtype for name, value in values.items()} == {
            name: value.dtype for name, value in wanted.items()
        }
