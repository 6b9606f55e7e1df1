"""A folder cut again is the folder that `build` writes with that number of parts, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partition.build import build
from partition.errors import InputError
from partition.folder import layout
from partition.folder.manifest import read_manifest
from partition.folder.read_dataset import PreparedFolder
from partition.folder.verify import verify
from partition.options import BuildOptions, CutMethod, RecutOptions
from partition.recut import recut
from partition.stages import Stages
from partition.transform.dataset import TRAIN
from tests.support.raw_tables import items_table, write
from tests.support.small import mask_features, prepare_small, small_dataset, weighted_dataset
from tests.support.tamper import PART, accept_manifest, change_manifest

QUIET = Stages(quiet=True)


def raw(folder: Path, text_ids: bool, labels: bool, seed: int = 5) -> list[str]:
    """A log and an items table in no particular order; the last items have no interaction."""
    rng = np.random.default_rng(seed)
    users, items, rows = 60, 40, 900
    order = rng.permutation(items)
    name = (lambda number: f"é{number * 7919 % 1000:03d}") if text_ids else (lambda number: int(number) * 3 + 5)
    user, item = rng.integers(0, users, rows), rng.integers(0, items - 3, rows)
    log: dict[str, Any] = {"user": [name(u) for u in user], "item": [name(i) for i in item]}
    if labels:
        log["split"] = rng.choice(3, rows, p=[0.8, 0.1, 0.1])
    write(folder / "log.parquet", pa.table(log))
    table = items_table([name(i) for i in order])
    noise = rng.standard_normal((items, 5)).astype(np.float32)
    write(folder / "items.parquet", table.set_column(1, "image", pa.array(list(noise))))
    return [str(folder / "log.parquet"), str(folder / "items.parquet")]


def prepared(folder: Path, inputs: list[str], parts: int, **options: Any) -> Path:
    output = folder / f"prepared-{parts}"
    return build(BuildOptions(input=inputs, output=output, parts=parts, **options), QUIET)


def cut_again(source: Path, parts: int, **options: Any) -> Path:
    output = source.with_name(f"recut-{parts}")
    return recut(RecutOptions(prepared=source, output=output, parts=parts, **options), QUIET)


@pytest.mark.parametrize(
    ("text_ids", "labels", "options"),
    [
        (True, True, {"pca": ["image=3"], "item_graph_k": 4}),
        (False, False, {"split": "random", "method": "stream", "kcore": 2}),
        (True, False, {"split": "random", "method": "random", "seed": 9, "cooccurrence_weight": 0.5}),
    ],
)
@pytest.mark.parametrize(("source", "target"), [(4, 3), (1, 4)])
def test_equals_build(
    tmp_path: Path, text_ids: bool, labels: bool, options: dict[str, Any], source: int, target: int
) -> None:
    inputs = raw(tmp_path, text_ids, labels)
    old = read_manifest(prepared(tmp_path, inputs, source, **options))
    built = read_manifest(prepared(tmp_path, inputs, target, **options))
    root = cut_again(tmp_path / f"prepared-{source}", target)
    again = verify(root)
    assert again.parts == built.parts  # sizes and digests of all files
    origin = {"output": str(root), "recut_from": {"digest": old.digest(), "parts": source}}
    assert again.settings == built.settings | origin
    seconds = {name for name in built.statistics if name.startswith("seconds_")}
    assert {name: again.statistics[name] for name in set(built.statistics) - seconds} == {
        name: built.statistics[name] for name in set(built.statistics) - seconds
    }
    different = {"parts", "settings", "statistics", "digests"}
    assert again.model_dump(exclude=different) == built.model_dump(exclude=different)
    for name in built.digests:  # orders are rows of the new parts
        assert (root / name).read_bytes() == (tmp_path / f"prepared-{target}" / name).read_bytes()
    assert set(again.digests) == set(built.digests)
    assert layout.order_file("item") in again.digests  # the items table is not sorted
    assert layout.order_file("user") not in again.digests


def test_metis_is_the_method_of_the_folder_unless_another_is_given(tmp_path: Path) -> None:
    inputs = raw(tmp_path, True, True)
    source = prepared(tmp_path, inputs, 2)
    built = read_manifest(prepared(tmp_path, inputs, 3))
    assert read_manifest(cut_again(source, 3)).parts == built.parts
    other = recut(RecutOptions(prepared=source, output=tmp_path / "other", parts=3, method=CutMethod.RANDOM), QUIET)
    assert read_manifest(other).parts != built.parts
    assert read_manifest(other).settings["method"] == "random"


def test_a_data_set_comes_back_as_it_was(tmp_path: Path) -> None:
    """Also one whose users are not in the order of their ids, and with nodes that have no interaction."""
    dataset = small_dataset(modalities=3)
    source = PreparedFolder.open(prepare_small(tmp_path, dataset=dataset))
    found = source.dataset(tmp_path)
    for name in ("user", "item", "split"):
        np.testing.assert_array_equal(getattr(found, name), getattr(dataset, name))
    assert found.user_ids.to_pylist() == dataset.user_ids.to_pylist()
    assert found.item_ids.to_pylist() == dataset.item_ids.to_pylist()
    for name, features in dataset.features.items():
        assert found.features[name].values.dtype == features.values.dtype
        np.testing.assert_array_equal(found.features[name].values, features.values)


def test_weights(tmp_path: Path) -> None:
    """Those of training interactions; a folder has no others, and reads them as 1."""
    dataset = weighted_dataset()
    assert dataset.weight is not None
    for name, parts in (("four", 4), ("three", 3)):
        prepare_small(tmp_path / name, parts=parts, dataset=dataset)
    source = tmp_path / "four" / "prepared"
    change_manifest(source, lambda tree: tree["settings"].update(seed=3))  # of prepare_small
    again = verify(cut_again(source, 3, method=CutMethod.RANDOM))
    assert again.weighted
    assert again.parts == read_manifest(tmp_path / "three" / "prepared").parts
    found = PreparedFolder.open(source).dataset(tmp_path).weight
    assert found is not None
    np.testing.assert_array_equal(found, np.where(dataset.split == TRAIN, dataset.weight, np.float32(1)))


def test_masks_of_missing_features(tmp_path: Path) -> None:
    dataset = mask_features(small_dataset())
    for name, parts in (("four", 4), ("three", 3)):
        prepare_small(tmp_path / name, parts=parts, dataset=dataset)
    source = tmp_path / "four" / "prepared"
    change_manifest(source, lambda tree: tree["settings"].update(seed=3))  # of prepare_small
    again = verify(cut_again(source, 3, method=CutMethod.RANDOM))
    assert all(modality.masked for modality in again.modalities)
    assert again.parts == read_manifest(tmp_path / "three" / "prepared").parts
    found = PreparedFolder.open(source).dataset(tmp_path).missing
    for name, mask in dataset.missing.items():
        np.testing.assert_array_equal(found[name], mask)


def refused(tmp_path: Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        recut(RecutOptions(output=tmp_path / "new", **options), QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".new*"))
    return caught.value


def test_refusals(tmp_path: Path) -> None:
    root = prepare_small(tmp_path)
    assert refused(tmp_path, prepared=tmp_path / "none", parts=2).code == "prepared.missing"
    assert refused(tmp_path, prepared=root, parts=10_000).code == "parts.too-many"
    change_manifest(root, lambda tree: tree["settings"].update(method="guess"))
    assert refused(tmp_path, prepared=root, parts=2).code == "manifest.field"
    assert recut(RecutOptions(prepared=root, output=tmp_path / "new", parts=2, method=CutMethod.RANDOM), QUIET)


def test_a_folder_that_changed_is_refused(tmp_path: Path) -> None:
    root = prepare_small(tmp_path)
    path = layout.part_dir(root, PART) / layout.ITEM_GRAPH
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    error = refused(tmp_path, prepared=root, parts=2)
    assert error.code == "prepared.changed"
    assert str(path) in str(error)


def test_an_order_that_is_no_order_is_refused(tmp_path: Path) -> None:
    from partition.files import sha256

    root = prepare_small(tmp_path)
    path = root / layout.order_file("user")
    rows = np.load(path)
    rows[0] = rows[1]
    np.save(path, rows)
    tree = read_manifest(root).model_dump(mode="json")
    accept_manifest(root, tree | {"digests": {path.name: sha256(path)}})
    assert refused(tmp_path, prepared=root, parts=2).code == "prepared.order"
    with pytest.raises(InputError) as caught:
        verify(root)
    assert caught.value.code == "prepared.order"


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    root = prepare_small(tmp_path)
    new = cut_again(root, 2)
    with pytest.raises(InputError) as caught:
        cut_again(root, 2)
    assert caught.value.code == "output.exists"
    cut_again(root, 2, overwrite=True, method=CutMethod.RANDOM)
    assert verify(new).num_parts == 2
    dataset = PreparedFolder.open(new).dataset(tmp_path)
    np.testing.assert_array_equal(dataset.item, small_dataset().item)


def test_a_folder_may_replace_itself(tmp_path: Path) -> None:
    inputs = raw(tmp_path, text_ids=True, labels=True)
    root = prepared(tmp_path, inputs, 2, pca=["image=3"], method="random")
    wanted = read_manifest(cut_again(root, 3)).parts
    recut(RecutOptions(prepared=root, output=root, parts=3, overwrite=True), QUIET)
    assert verify(root).parts == wanted
