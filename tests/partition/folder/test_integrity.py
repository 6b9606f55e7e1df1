"""A prepared folder is compared with what preparation wrote before a rank reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.graph.shard import load_shard
from cm3_dist.training.loop import run
from partition.errors import InputError
from partition.folder import layout
from partition.folder.integrity import check_shared
from partition.folder.seal import is_whole, sealed
from partition.transform.dataset import Features
from tests.support.quoted import assert_quoted
from tests.support.small import prepare_small, small_dataset, small_settings
from tests.support.tamper import change_manifest

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


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named(root: Path, name: str, kind: str) -> None:
    path = layout.part_dir(root, 2) / name
    damage(path, kind)
    words = "no such file" if kind == "gone" else "its bytes changed since it was written"
    for rank, world_size in ((0, 1), (1, 2)):
        said = refused(lambda rank=rank, world_size=world_size: load_shard(root, rank, world_size, "full"))
        assert said.startswith(f"{path}: {words}")
    load_shard(root, 0, 2, "full")  # the parts of another rank are its own affair
    if kind != "flipped":
        assert refused(lambda: load_shard(root, 0, 1, "sizes")).startswith(f"{path}: {words}")


def test_training_refuses_damage(root: Path, tmp_path: Path, alone: Runtime) -> None:
    path = layout.part_dir(root, 1) / "features-text.npy"
    damage(path, "flipped")
    settings = small_settings(root, tmp_path / "run", train={"epochs": 1})
    said = refused(lambda: run(settings, alone))
    assert said.startswith(f"{path}: its bytes changed since it was written (sha256)")
    assert_quoted(f"error: {said}")
    assert not settings.run.dir.exists()
    run(small_settings(root, tmp_path / "run", train={"epochs": 1}, data={"path": root, "check": "sizes"}), alone)


@pytest.mark.parametrize("kind", DAMAGE)
def test_files_of_no_part(root: Path, kind: str) -> None:
    path = root / "pca-text.npy"
    damage(path, kind)
    for action in (lambda: load_shard(root, 0, 1, "full"), lambda: check_shared(root, layout.read_manifest(root))):
        assert refused(action).startswith(f"{path}: ")


def test_any_changed_byte_of_the_manifest(root: Path) -> None:
    path = root / layout.MANIFEST
    data = path.read_bytes()
    assert is_whole(data)
    rng = np.random.default_rng(0)
    spaces = [place for place, byte in enumerate(data) if byte == 0x20]
    for place in [*rng.choice(len(data), 300, replace=False), *spaces[:20]]:
        changed = bytearray(data)
        changed[place] = 0x0A if data[place] == 0x20 else changed[place] ^ int(rng.integers(1, 256))
        path.write_bytes(changed)
        assert refused(lambda: layout.read_manifest(root)).startswith(f"{path}: ")
    for length in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert refused(lambda: layout.read_manifest(root)).startswith(f"{path}: ")


def test_an_edited_manifest_is_named(root: Path) -> None:
    path = root / layout.MANIFEST
    path.write_text(path.read_text().replace('"name": "small"', '"name": "large"'))
    said = refused(lambda: layout.read_manifest(root))
    assert said.startswith(f"{path}: changed since it was written (checksum)")
    assert_quoted(f"error: {said}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["parts"][0].update(users=10**6), "parts have"),
        (lambda tree: tree.update(user_stride=5), "user_stride: 5, not"),
        (
            lambda tree: tree.update(digests={"../../etc/passwd": "0"}),
            "'../../etc/passwd' is no file of a prepared folder",
        ),
        (lambda tree: tree["parts"][0]["digests"].update({"../x": "0"}), "parts.0.digests: expected"),
        (lambda tree: tree["modalities"][0].update(name="../x"), "field 'modalities.0.name'"),
        (lambda tree: tree["modalities"][0].update(name="x\n"), "field 'modalities.0.name'"),
    ],
)
def test_a_manifest_that_contradicts_itself_or_leaves_its_folder(
    change: Callable[[dict[str, Any]], object], message: str, root: Path
) -> None:
    change_manifest(root, change)
    assert message in refused(lambda: load_shard(root, 0, 1))


def test_folders_of_the_first_schema_are_read(root: Path) -> None:
    path = root / layout.MANIFEST
    tree = json.loads(path.read_text())
    tree["schema_version"] = 1
    path.write_bytes(sealed(tree).replace(b'"checksum"', b'"check_sum"'))
    assert "check_sum" in refused(lambda: layout.read_manifest(root))
    for name in ("checksum", "digests"):
        del tree[name]
    for part in tree["parts"]:
        del part["bytes"]
    path.write_text(json.dumps(tree))
    load_shard(root, 0, 1, "full")
    damage(layout.part_dir(root, 0) / "users.arrow", "shorter")
    assert "users.arrow: its bytes changed" in refused(lambda: load_shard(root, 0, 1, "full"))
