"""`missing-NAME.npy` of a prepared folder: written, read, and checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from partition.build import build
from partition.folder import layout
from partition.folder.arrays import open_features, open_missing
from partition.folder.manifest import read_manifest
from partition.folder.verify import verify
from partition.options import BuildOptions
from partition.stages import Stages
from tests.support.raw_tables import table, write
from tests.support.small import mask_features, prepare_small, small_dataset
from tests.support.tamper import PART, accept_file, change_manifest, part_file, refused

IMAGE = layout.missing_file("image")


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("masked"), dataset=mask_features(small_dataset()))


@pytest.fixture
def root(masked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(masked, tmp_path / "prepared"))


def test_masks_of_all_parts_are_those_of_the_data_set(masked: Path) -> None:
    manifest, dataset = verify(masked), mask_features(small_dataset())
    assert [modality.masked for modality in manifest.modalities] == [True, True]
    for modality in manifest.modalities:
        missing = dataset.features[modality.name].missing
        assert missing is not None
        found = 0
        for part, sizes in enumerate(manifest.parts):
            folder = layout.part_dir(masked, part)
            mask = open_missing(folder / layout.missing_file(modality.name), sizes.items)
            values = open_features(folder / layout.features_file(modality.name), modality, sizes.items)
            np.testing.assert_array_equal(mask, ~values.any(axis=1))
            found += int(mask.sum())
        assert found == missing.sum()


def test_without_masks_there_is_no_file(tmp_path: Path) -> None:
    manifest = read_manifest(prepare_small(tmp_path))
    assert not any(modality.masked for modality in manifest.modalities)
    assert not [name for name in manifest.part_files if name.startswith("missing-")]


def test_a_row_that_is_marked_but_not_zeros(root: Path) -> None:
    mask = np.load(part_file(root, IMAGE))
    row = int(np.argmin(mask))
    mask[row] = True
    np.save(part_file(root, IMAGE), mask)
    accept_file(root, part_file(root, IMAGE))
    message = refused(root, "prepared.features")
    assert f"part-{PART:05d}/features-image.npy: row {row}: is marked as missing, but is not zeros" in message


@pytest.mark.parametrize(
    "wrong", [np.zeros(3, bool), np.zeros(15, np.int8), np.zeros((15, 1), bool), np.zeros((0,), bool)]
)
def test_masks_of_another_shape_or_dtype(root: Path, wrong: np.ndarray) -> None:
    np.save(part_file(root, IMAGE), wrong)
    accept_file(root, part_file(root, IMAGE))
    assert IMAGE in refused(root, "array.shape")


def test_a_damaged_or_absent_mask_is_named(root: Path) -> None:
    path = part_file(root, IMAGE)
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(root, "prepared.changed").startswith(f"{path}: ")
    path.unlink()
    assert refused(root, "prepared.missing").startswith(f"{path}: ")


def test_the_manifest_says_which_modalities_have_masks(root: Path) -> None:
    change_manifest(root, lambda tree: tree["modalities"][0].update(masked=False))
    assert "parts.0.digests" in refused(root, "manifest.contradiction")


@pytest.mark.parametrize("interrupted", [False, True])
def test_build_writes_what_the_option_says(tmp_path: Path, interrupted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pa.array([[1.0, 2.0], None, [3.0, 6.0], [4.0, 1.0]])
    content = pa.table({"item": list("abcd"), "image": image, "text": pa.array([[1.0], [2.0], [3.0], [4.0]])})
    inputs = [write(tmp_path / "log.csv", table()), write(tmp_path / "items.parquet", content)]
    options = BuildOptions(
        input=[str(path) for path in inputs], output=tmp_path / "prepared", parts=1, missing=["image=mask"]
    )
    if interrupted:

        def fails(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("partition.build.write_prepared", fails)
            with pytest.raises(KeyboardInterrupt):
                build(options, Stages(quiet=True))
    build(options, Stages(quiet=True))
    manifest = verify(tmp_path / "prepared")
    assert [modality.masked for modality in manifest.modalities] == [True, False]
    assert manifest.counts["missing_image"] == 1
    mask = open_missing(layout.part_dir(tmp_path / "prepared", 0) / IMAGE, 4)
    assert mask.sum() == 1
