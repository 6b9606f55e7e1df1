"""`verify` notices whatever is changed in a prepared folder, and says in which file and row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partition.errors import InputError
from partition.folder import layout
from partition.folder.arrays import (
    node_schema,
    read_similar,
    read_table,
    write_similar,
    write_table,
)
from partition.folder.manifest import read_manifest
from partition.folder.verify import verify
from tests.support.tamper import (
    PART,
    accept_bytes,
    accept_file,
    accept_manifest,
    change_manifest,
    part_file,
    refused,
)

FILES = ["users.arrow", "items.arrow", "graph.npz", "item_graph.npz", "validation.arrow", "test.arrow"]


def features(root: Path) -> list[str]:
    return [layout.features_file(modality.name) for modality in read_manifest(root).modalities]


def test_what_was_written_is_whole(original: Path) -> None:
    assert verify(original) == read_manifest(original)


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
        code = "prepared.missing" if damage == "delete" else "prepared.changed"
        assert refused(root, code).startswith(f"{path}: ")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"nonsense" * 99, "half"])
def test_files_that_cannot_be_read_are_named(name: str, content: bytes | str, root: Path) -> None:
    path = part_file(root, name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if isinstance(content, str) else content)
    accept_file(root, path)
    assert refused(root, "file.unreadable").startswith(f"{path}: ")


def test_files_and_parts_that_do_not_belong(root: Path) -> None:
    part_file(root, "users.arrow.bak").write_text("")
    assert "users.arrow.bak: " in refused(root, "prepared.files")
    part_file(root, "users.arrow.bak").unlink()
    shutil.copytree(layout.part_dir(root, PART), layout.part_dir(root, 9))
    assert "part-00009: " in refused(root, "prepared.files")


def numbers(tree: Any, path: tuple = ()) -> list[tuple]:
    """Paths of the numbers in the manifest that say something about the files."""
    if isinstance(tree, dict):
        return [p for key, value in tree.items() for p in numbers(value, (*path, key))]
    if isinstance(tree, list):
        return [p for key, value in enumerate(tree) for p in numbers(value, (*path, key))]
    free = path[0] in ("schema_version", "counts", "settings", "inputs", "versions") or path[-1] in (
        "item_graph_recall",
        "masked",
    )
    return [path] if isinstance(tree, int | float) and not free else []


def test_every_number_of_the_manifest_is_checked(root: Path) -> None:
    text = (root / layout.MANIFEST).read_text()
    paths = numbers(json.loads(text))
    assert ("parts", 0, "halo_users") in paths
    assert ("statistics", "edge_cut") in paths
    assert ("weighted",) in paths
    for path in paths:
        for by in (-1, 1):
            if path[-1] == "source_dim" and by == 1:
                continue  # features may have been reduced from more
            tree = json.loads(text)
            inner = tree
            for key in path[:-1]:
                inner = inner[key]
            value = inner[path[-1]]
            inner[path[-1]] = not value if isinstance(value, bool) else value + by
            accept_manifest(root, tree)
            with pytest.raises(InputError):
                verify(root)


@pytest.mark.parametrize(
    ("change", "code", "place"),
    [
        (lambda tree: tree["parts"].pop(), "manifest.contradiction", "manifest.json: users: "),
        (lambda tree: tree.update(modalities=[]), "manifest.contradiction", "manifest.json: modalities: "),
        (
            lambda tree: tree["modalities"].append(tree["modalities"][0]),
            "manifest.contradiction",
            "manifest.json: modalities: ",
        ),
        (lambda tree: tree["modalities"][0].update(dtype="float16"), "array.shape", "features-image.npy: "),
        (lambda tree: tree["modalities"].pop(), "manifest.contradiction", "manifest.json: parts.0.digests: "),
        (lambda tree: tree.update(user_id_type="int64"), "table.columns", "users.arrow: "),
        (lambda tree: tree.update(item_id_type="string"), "table.columns", "items.arrow: "),
        (lambda tree: tree.update(split="cold_items"), "prepared.held_out", "validation.arrow: row 0: "),
        (
            lambda tree: tree["statistics"].pop("edge_cut"),
            "manifest.contradiction",
            "manifest.json: statistics.edge_cut: ",
        ),
    ],
)
def test_a_changed_manifest(change: Callable[[dict[str, Any]], object], code: str, place: str, root: Path) -> None:
    change_manifest(root, change)
    assert place in refused(root, code)


def change_nodes(root: Path, name: str, change: Callable[[list, np.ndarray], None]) -> None:
    path = part_file(root, name)
    schema = node_schema(read_manifest(root), "user" if name == "users.arrow" else "item")
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
    def one_more(_: list, degree: np.ndarray) -> None:
        degree[3] += 1

    def no_id(ids: list, _: np.ndarray) -> None:
        ids[4] = None

    def same_id(ids: list, _: np.ndarray) -> None:
        ids[6] = ids[2]

    def id_of_another_part(ids: list, _: np.ndarray) -> None:
        schema = node_schema(read_manifest(original), name.removesuffix("s.arrow"))
        ids[1] = read_table(layout.part_dir(original, 0) / name, schema)["id"][5].as_py()

    kind = name.removesuffix("s.arrow")
    cases: dict[Callable, str] = {
        swap_unequal: f"graph.npz: {kind} node 0: its degree is not its part's train_degree",
        one_more: {"user": "users.arrow: train_degree sums to", "item": "graph.npz: item node 3: its degree"}[kind],
        no_id: f"part-00002/{name}: column 'id', row 4: null",
        same_id: f"part-00002/{name}: row 6: id ",
        id_of_another_part: f"part-00002/{name}: row 1: id ",
    }
    for change, message in cases.items():
        root = Path(shutil.copytree(original, tmp_path / change.__name__))
        change_nodes(root, name, change)
        text = refused(root)
        # The halo of a part that comes before can be what contradicts a degree.
        assert message in text or ("degree" in message and f"{kind} node" in text and "its degree is not" in text)


@pytest.mark.parametrize(("name", "active"), [("users.arrow", "active_users"), ("items.arrow", "active_items")])
def test_trained_nodes_come_first(name: str, active: str, root: Path) -> None:
    accept_bytes(root, **{active: -1})
    assert f"{name}: row " in refused(root, "prepared.degrees")


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
    own = PART * read_manifest(root).item_stride + 2
    here = slice(similar.indptr[2], similar.indptr[3])
    others = np.setdiff1d(np.arange(50), similar.neighbour[here])
    row = np.where(similar.neighbour[here] == own, others[0], similar.neighbour[here])
    order = np.argsort(row)
    similar.neighbour[here], similar.weight[here] = row[order], similar.weight[here][order]
    write_similar(path, similar)
    accept_bytes(root)
    assert refused(root, "prepared.item_graph") == f"{path}: item 2: is not its own neighbour"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite(bad: float, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.folder.verify_part.FEATURE_VALUES", 30)
    path = part_file(root, features(root)[1])
    values = np.load(path)
    values[11, 3] = bad
    np.save(path, values)
    accept_bytes(root)
    assert refused(root, "prepared.features") == f"{path}: row 11: not finite"


@pytest.mark.parametrize(
    "change", [lambda v: v[:-1], lambda v: v[:, :-1], lambda v: v.astype(np.float16), lambda v: v[0]]
)
def test_features_of_another_shape(change: Callable[[np.ndarray], np.ndarray], root: Path) -> None:
    path = part_file(root, features(root)[0])
    np.save(path, change(np.load(path)))
    accept_bytes(root)
    assert refused(root, "array.shape").startswith(f"{path}: float")
