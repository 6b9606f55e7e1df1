"""A prepared folder is compared with what preparation wrote before a rank reads it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.graph.shard import load_shard
from cm3_dist.inference.id_map import IdMap
from cm3_dist.training.loop import run
from partition.errors import InputError
from partition.folder import layout
from partition.folder.arrays import node_schema, read_table, write_table
from partition.folder.integrity import check_shared
from partition.folder.manifest import read_manifest
from partition.folder.verify import verify
from partition.transform.dataset import Features
from tests.support.quoted import assert_quoted
from tests.support.small import prepare_small, small_dataset, small_settings
from tests.support.tamper import accept_file, change_manifest

FILES = [
    *("users.arrow", "items.arrow", "graph.npz", "item_graph.npz", "validation.arrow", "test.arrow"),
    *("features-image.npy", "features-text.npy"),
]


@pytest.fixture(scope="module")
def alone() -> Iterator[Runtime]:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a modality that was reduced."""
    dataset = small_dataset()
    text = Features(dataset.features["text"].values, 20, np.eye(20, 8))
    features = {"image": dataset.features["image"], "text": text}
    dataset = type(dataset)(**{**vars(dataset), "features": features})
    return prepare_small(tmp_path_factory.mktemp("original"), dataset=dataset)


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "prepared"))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": flip,
    "shorter": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "empty": lambda _: b"",
    "gone": lambda _: None,
}


def damage(path: Path, kind: str) -> None:
    data = DAMAGE[kind](path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def refusal(action: Callable[[], object], path: Path | None = None) -> InputError:
    """The error, whose one line begins with `path`."""
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    assert path is None or str(error.value).startswith(f"{path}: ")
    return error.value


def refused(action: Callable[[], object], path: Path | None = None) -> str:
    """The code of the error."""
    return refusal(action, path).code


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named(root: Path, name: str, kind: str) -> None:
    path = layout.part_dir(root, 2) / name
    damage(path, kind)
    code = "prepared.missing" if kind == "gone" else "prepared.changed"
    for rank, world_size in ((0, 1), (1, 2)):
        assert refused(lambda r=rank, w=world_size: load_shard(root, r, w, "full"), path) == code
    load_shard(root, 0, 2, "full")  # the parts of another rank are its own affair
    if kind != "flipped":
        assert refused(lambda: load_shard(root, 0, 1, "sizes"), path) == code


def test_training_refuses_damage(root: Path, tmp_path: Path, alone: Runtime) -> None:
    path = layout.part_dir(root, 1) / "features-text.npy"
    damage(path, "flipped")
    settings = small_settings(root, tmp_path / "run", train={"epochs": 1})
    error = refusal(lambda: run(settings, alone), path)
    assert error.code == "prepared.changed"
    assert_quoted(error.line)
    assert not settings.run.dir.exists()
    run(small_settings(root, tmp_path / "run", train={"epochs": 1}, data={"path": root, "check": "sizes"}), alone)


@pytest.mark.parametrize("kind", DAMAGE)
def test_files_of_no_part(root: Path, kind: str) -> None:
    path = root / "pca-text.npy"
    damage(path, kind)
    for action in (lambda: load_shard(root, 0, 1, "full"), lambda: check_shared(root, read_manifest(root))):
        assert refused(action, path) in ("prepared.missing", "prepared.changed")


def test_any_changed_byte_of_the_manifest(root: Path) -> None:
    path = root / layout.MANIFEST
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    spaces = [place for place, byte in enumerate(data) if byte == 0x20]
    for place in [*rng.choice(len(data), 300, replace=False), *spaces[:20]]:
        changed = bytearray(data)
        changed[place] = 0x0A if data[place] == 0x20 else changed[place] ^ int(rng.integers(1, 256))
        path.write_bytes(changed)
        assert refused(lambda: read_manifest(root), path).startswith("manifest.")
    for length in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert refused(lambda: read_manifest(root), path).startswith("manifest.")


def test_an_edited_manifest_is_named(root: Path) -> None:
    path = root / layout.MANIFEST
    path.write_text(path.read_text().replace('"name": "small"', '"name": "large"'))
    error = refusal(lambda: read_manifest(root), path)
    assert error.code == "manifest.changed"
    assert_quoted(error.line)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda tree: tree["parts"][0].update(users=10**6), "manifest.contradiction"),
        (lambda tree: tree.update(user_stride=5), "manifest.contradiction"),
        (lambda tree: tree.update(digests={"../../etc/passwd": "0"}), "manifest.contradiction"),
        (lambda tree: tree["parts"][0]["digests"].update({"../x": "0"}), "manifest.contradiction"),
        (lambda tree: tree["modalities"][0].update(name="../x"), "manifest.field"),
        (lambda tree: tree["modalities"][0].update(name="x\n"), "manifest.field"),
    ],
)
def test_a_manifest_that_contradicts_itself_or_leaves_its_folder(
    change: Callable[[dict[str, Any]], object], code: str, root: Path
) -> None:
    change_manifest(root, change)
    assert refused(lambda: load_shard(root, 0, 1)) == code


def test_digests_are_in_the_form_of_sha256sum(root: Path) -> None:
    shown = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=root, capture_output=True, text=True, check=True)
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {"SHA256SUMS"}
    assert {line.removesuffix(": OK") for line in shown.stdout.splitlines()} == files


def test_any_changed_line_of_the_digests(root: Path) -> None:
    path = root / layout.SUMS
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    for changed in ("", text + "\n", "".join(lines[1:]), "".join(lines[:-1]), text.replace("users", "items", 1)):
        path.write_text(changed)
        assert refused(lambda: read_manifest(root)) == "manifest.changed"
    path.write_bytes(b"\xff")
    assert refused(lambda: read_manifest(root)) == "manifest.unreadable"
    path.unlink()
    assert refused(lambda: read_manifest(root)) == "manifest.unreadable"


def write_as_version_2(root: Path, tree: dict[str, Any]) -> None:
    """With a checksum of the manifest in itself: the digest of its bytes with zeros in the checksum's place."""
    blank = json.dumps({"checksum": "0" * 64, **tree, "schema_version": 2}, indent=1) + "\n"
    digest = hashlib.sha256(blank.encode()).hexdigest()
    (root / layout.MANIFEST).write_text(blank.replace("0" * 64, digest, 1))
    (root / layout.SUMS).unlink(missing_ok=True)


def write_as_version_3(root: Path) -> None:
    """With text ids in 32-bit strings, and without the fields of version 4 in the manifest."""
    for part in range(read_manifest(root).num_parts):
        path = layout.part_dir(root, part) / layout.USERS
        table = read_table(path, {"id": pa.large_string(), "train_degree": pa.int64()})
        columns = {name: column.combine_chunks() for name, column in zip(table.column_names, table.columns)}
        path.unlink()  # it is mapped
        write_table(path, columns | {"id": columns["id"].cast(pa.string())})
        accept_file(root, path)

    def change(tree: dict[str, Any]) -> None:
        tree["schema_version"] = 3
        del tree["weighted"]
        for modality in tree["modalities"]:
            del modality["masked"]

    change_manifest(root, change)


def test_folders_of_the_third_schema_are_read(root: Path) -> None:
    new = read_manifest(root)
    ids = IdMap(root, new, "user").part_ids([0, 1, 2, 3])
    write_as_version_3(root)
    old = verify(root)
    assert (old.schema_version, old.weighted, old.modalities) == (3, False, new.modalities)
    assert node_schema(old, "user")["id"] == pa.string()
    found = IdMap(root, old, "user")
    assert found.part_ids([0, 1, 2, 3]) == ids
    np.testing.assert_array_equal(found.take(found.find(ids)), ids)
    assert load_shard(root, 0, 1, "full").user_degree.sum() == new.train


def test_each_schema_has_its_own_type_of_text_ids(root: Path) -> None:
    users = layout.part_dir(root, 0) / layout.USERS
    assert node_schema(read_manifest(root), "user")["id"] == pa.large_string()
    change_manifest(root, lambda tree: tree.update(schema_version=3))
    assert refused(lambda: verify(root), users) == "table.columns"


def test_folders_of_the_second_schema_are_read(root: Path) -> None:
    path = root / layout.MANIFEST
    write_as_version_3(root)
    new = read_manifest(root)
    write_as_version_2(root, json.loads(path.read_text()))
    old = read_manifest(root)
    assert old.model_copy(update={"schema_version": 3, "checksum": ""}) == new
    assert old.digest() == new.digest()
    load_shard(root, 0, 1, "full")
    path.write_bytes(flip(path.read_bytes()))
    assert refused(lambda: read_manifest(root)) in ("manifest.changed", "manifest.unreadable")


def test_folders_of_the_first_schema_are_read(root: Path) -> None:
    path = root / layout.MANIFEST
    tree = json.loads(path.read_text())
    tree["schema_version"] = 1
    del tree["digests"]
    for part in tree["parts"]:
        del part["bytes"]
    path.write_text(json.dumps(tree))
    (root / layout.SUMS).unlink()
    load_shard(root, 0, 1, "full")
    users = layout.part_dir(root, 0) / "users.arrow"
    damage(users, "shorter")
    assert refused(lambda: load_shard(root, 0, 1, "full"), users) == "prepared.changed"
