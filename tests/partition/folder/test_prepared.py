"""A prepared folder holds the data set it was made from, for any number of parts and either way of cutting them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from partition.cut.assign import Assignment, assign_parts
from partition.errors import InputError
from partition.folder import layout
from partition.folder.arrays import (
    PAIR_SCHEMA,
    RELATIONS,
    node_schema,
    open_features,
    read_graph,
    read_similar,
    read_table,
)
from partition.folder.manifest import Manifest, read_manifest
from partition.folder.stats import QUANTILES, degree_histogram, describe, expected_halo, quantiles
from partition.folder.verify import verify
from partition.folder.write import write_prepared
from partition.item_graph.graph import ItemGraph, build_item_graph
from partition.options import CutMethod, default_weights
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Dataset, Features
from tests.support.small import prepare_small, small_dataset


def item_graph(dataset: Dataset) -> ItemGraph:
    features = {name: modality.values for name, modality in dataset.features.items()}
    return build_item_graph(features, default_weights(list(features)), 4)


def parts_of(dataset: Dataset, parts: int, method: CutMethod) -> Assignment:
    return assign_parts(*dataset.train(), len(dataset.user_ids), len(dataset.item_ids), parts, method, seed=3)


def index_of_rows(root: Path, manifest: Manifest, kind: str, ids: list) -> np.ndarray:
    """[rows] index in the data set of every global row, by external id; -1 for padding."""
    position = {key: index for index, key in enumerate(ids)}
    stride = manifest.user_stride if kind == "user" else manifest.item_stride
    index = np.full(stride * manifest.num_parts, -1)
    for part in range(manifest.num_parts):
        path = layout.part_dir(root, part) / (layout.USERS if kind == "user" else layout.ITEMS)
        own = [position[key] for key in read_table(path, node_schema(manifest, kind))["id"].to_pylist()]
        index[part * stride : part * stride + len(own)] = own
    return index


def same_pairs(user: np.ndarray, item: np.ndarray, dataset: Dataset, split: int) -> bool:
    """Whether these are the split's interactions, each once."""
    kept = dataset.split == split
    return sorted(zip(user, item, strict=True)) == sorted(zip(dataset.user[kept], dataset.item[kept], strict=True))


@pytest.mark.parametrize("method", [CutMethod.METIS, CutMethod.STREAM, CutMethod.RANDOM])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_put_together_are_the_data_set(parts: int, method: CutMethod, tmp_path: Path) -> None:
    dataset = small_dataset(modalities=3)
    first = dataset.features["image"] if "image" in dataset.features else next(iter(dataset.features.values()))
    half = replace(first, values=first.values.astype(np.float16), source_dim=99)
    dataset = replace(dataset, features={**dataset.features, "half": half}, counts={"merged": 4}, inputs={"a": "b"})
    graph = item_graph(dataset)
    assignment = parts_of(dataset, parts, method)
    root = tmp_path / "prepared"
    write_prepared(dataset, graph, assignment, root, {"seed": 1}, {"seconds": 2.0})
    manifest = verify(root)

    assert (manifest.num_parts, manifest.counts, manifest.inputs) == (parts, {"merged": 4}, {"a": "b"})
    assert manifest.settings == {"seed": 1}
    assert manifest.statistics["seconds"] == 2.0
    assert [m.name for m in manifest.modalities] == list(dataset.features)
    index = {
        "user": index_of_rows(root, manifest, "user", dataset.user_ids.to_pylist()),
        "item": index_of_rows(root, manifest, "item", dataset.item_ids.to_pylist()),
    }
    for kind, count in (("user", len(dataset.user_ids)), ("item", len(dataset.item_ids))):
        np.testing.assert_array_equal(np.sort(index[kind][index[kind] >= 0]), np.arange(count))

    training: dict = {relation: [] for relation in RELATIONS}
    held_out: dict = {"validation": [], "test": []}
    for part in range(parts):
        folder = layout.part_dir(root, part)
        stored = read_graph(folder / layout.GRAPH)
        for relation, (source, destination) in stored.edges.items():
            ends = {
                relation[0]: index[relation[0]][stored.row[relation[0]][source]],
                relation[2]: index[relation[2]][stored.row[relation[2]][destination]],
            }
            training[relation].append((ends["user"], ends["item"]))
        for split, name in layout.HELD_OUT.items():
            table = read_table(folder / name, PAIR_SCHEMA)
            held_out[split].append((index["user"][table["user"]], index["item"][table["item"]]))
        own = index["item"][part * manifest.item_stride :][: manifest.parts[part].items]
        np.testing.assert_array_equal(own, index["item"][stored.row["item"][: len(own)]])
        for modality in manifest.modalities:
            stored_values = open_features(folder / layout.features_file(modality.name), modality, len(own))
            np.testing.assert_array_equal(stored_values, dataset.features[modality.name].values[own])
        similar = read_similar(folder / layout.ITEM_GRAPH)
        for offset, item in enumerate(own):
            here = slice(similar.indptr[offset], similar.indptr[offset + 1])
            there = slice(graph.indptr[item], graph.indptr[item + 1])
            assert dict(zip(index["item"][similar.neighbour[here]], similar.weight[here], strict=True)) == dict(
                zip(graph.neighbour[there], graph.weight[there], strict=True)
            )
    for pairs in training.values():
        user, item = np.concatenate(pairs, axis=1)
        assert same_pairs(user, item, dataset, TRAIN)
    for split, code in (("validation", VALIDATION), ("test", TEST)):
        user, item = np.concatenate(held_out[split], axis=1)
        assert same_pairs(user, item, dataset, code)

    # The assignment is kept; inside a part trained nodes come first, then both groups follow the index.
    degrees = {"user": np.bincount(dataset.train()[0], minlength=len(dataset.user_ids))}
    degrees["item"] = np.bincount(dataset.train()[1], minlength=len(dataset.item_ids))
    for kind, owner in (("user", assignment.user_part), ("item", assignment.item_part)):
        by_part = index[kind].reshape(parts, -1)
        for part, row in enumerate(by_part):
            own = row[row >= 0]
            assert (owner[own] == part).all()
            order = sorted(own, key=lambda n: (degrees[kind][n] == 0, n))
            np.testing.assert_array_equal(own, order)


def test_equal_data_give_equal_digests(tmp_path: Path) -> None:
    dataset = small_dataset()
    first = verify(prepare_small(tmp_path / "a", dataset=dataset))
    again = verify(prepare_small(tmp_path / "b", dataset=dataset))
    assert first.digest() == again.digest()
    other = replace(dataset, features={**dataset.features, "text": Features(np.ones((60, 5)), 5)})
    assert verify(prepare_small(tmp_path / "c", dataset=other)).digest() != first.digest()


def test_no_held_out_interactions(tmp_path: Path) -> None:
    dataset = small_dataset()
    kept = dataset.split == TRAIN
    dataset = replace(dataset, user=dataset.user[kept], item=dataset.item[kept], split=dataset.split[kept])
    manifest = verify(prepare_small(tmp_path, dataset=dataset))
    assert (manifest.validation, manifest.test) == (0, 0)


def test_cut_and_halo_are_counted(tmp_path: Path) -> None:
    dataset = small_dataset(users=121, items=63)  # they do not divide evenly
    assignment = parts_of(dataset, 4, CutMethod.RANDOM)
    write_prepared(dataset, item_graph(dataset), assignment, tmp_path / "prepared", {}, {})
    manifest = verify(tmp_path / "prepared")
    user, item = dataset.train()
    ends = assignment.user_part[user], assignment.item_part[item]
    assert manifest.statistics["edge_cut"] == pytest.approx(np.mean(ends[0] != ends[1]))
    assert manifest.statistics["edge_cut_random"] == 0.75
    for kind, owner in (("user", assignment.user_part), ("item", assignment.item_part)):
        padding = 4 * np.bincount(owner).max() / len(owner) - 1
        assert manifest.statistics[f"{kind}_padding"] == pytest.approx(padding)
    halo_users = {(part, u) for part, other, u in zip(ends[1], ends[0], user, strict=True) if part != other}
    halo_items = {(part, i) for part, other, i in zip(ends[0], ends[1], item, strict=True) if part != other}
    assert sum(part.halo_users for part in manifest.parts) == len(halo_users)
    assert sum(part.halo_items for part in manifest.parts) == len(halo_items)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = prepare_small(tmp_path)
    digest = verify(root).digest()
    monkeypatch.setattr(
        "partition.folder.write.write_similar", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    for name in ("prepared", "another"):
        with pytest.raises(OSError, match="No space left"):
            write_prepared(
                dataset := small_dataset(seed=1),
                item_graph(dataset),
                parts_of(dataset, 2, CutMethod.RANDOM),
                tmp_path / name,
                {},
                {},
            )
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
    assert verify(root).digest() == digest


def test_a_prepared_folder_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    first = verify(prepare_small(tmp_path))
    second = verify(prepare_small(tmp_path, parts=2))
    assert (first.num_parts, second.num_parts) == (4, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]
    for name in ("notes", "file"):
        other = tmp_path / name / "prepared"
        other.parent.mkdir()
        if name == "notes":
            other.mkdir()
            (other / "diary.txt").write_text("mine")
        else:
            other.write_text("mine")
        with pytest.raises(InputError) as error:
            prepare_small(other.parent)
        assert error.value.code == "output.not-prepared"
        assert [path.name for path in other.parent.iterdir()] == ["prepared"]
        assert (other / "diary.txt" if name == "notes" else other).read_text() == "mine"


def test_stats_of_degrees(tmp_path: Path) -> None:
    dataset = small_dataset()
    root = prepare_small(tmp_path)
    for kind, column, count in (("user", 0, len(dataset.user_ids)), ("item", 1, len(dataset.item_ids))):
        degree = np.bincount(dataset.train()[column], minlength=count)
        histogram = degree_histogram(root, read_manifest(root), kind)
        np.testing.assert_array_equal(histogram, np.bincount(degree))
        assert quantiles(histogram) == np.quantile(degree, QUANTILES, method="inverted_cdf").tolist()


def test_expected_halo_is_that_of_random_parts() -> None:
    rng = np.random.default_rng(0)
    degree = np.array([0, 1, 2, 5, 30])
    drawn = []
    for _ in range(4000):
        own = rng.integers(0, 4, len(degree))
        others = [set(rng.integers(0, 4, count)) - {part} for part, count in zip(own, degree, strict=True)]
        drawn.append(sum(len(parts) for parts in others))
    assert expected_halo(np.bincount(degree), 4) == pytest.approx(np.mean(drawn), rel=0.02)


def test_describe_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = prepare_small(tmp_path)
    describe(root, tmp_path / "degrees.png")
    text = capsys.readouterr().out
    manifest = read_manifest(root)
    for word in (f"{manifest.train:,}", f"{manifest.statistics['edge_cut']:.1%}", "largest / mean", "degrees.png"):
        assert word in text
    assert (tmp_path / "degrees.png").read_bytes().startswith(b"\x89PNG")
    for folder, picture, code in (
        (root, tmp_path / "no" / "x.png", "file.unwritable"),
        (tmp_path, None, "prepared.missing"),
    ):
        with pytest.raises(InputError) as error:
            describe(folder, picture)
        assert error.value.code == code


def test_describe_one_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(prepare_small(tmp_path, parts=1), None)
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "manifest.unreadable"),
        ("[]", "manifest.version"),
        (json.dumps({"schema_version": 7}), "manifest.version"),
        (json.dumps({"schema_version": 1}), "manifest.field"),
        (json.dumps({"schema_version": 2}), "manifest.changed"),
        (json.dumps({"schema_version": 3}), "manifest.unreadable"),
    ],
)
def test_bad_manifests_are_named(text: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / layout.MANIFEST
    path.write_text(text)
    with pytest.raises(InputError) as error:
        verify(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/")
    assert error.value.code == code
    assert "\n" not in str(error.value)
