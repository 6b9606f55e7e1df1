"""What other programs read is what was prepared, in external ids; and `build` reads it again."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.build import build
from partition.errors import InputError
from partition.export.options import ExportFormat, ExportOptions
from partition.export.run import export
from partition.folder.manifest import read_manifest
from partition.options import BuildOptions
from partition.stages import Stages
from partition.transform.dataset import TRAIN, Dataset
from tests.support.raw_tables import items_table, pairs, read, write
from tests.support.small import mask_features, prepare_small, small_dataset, weighted_dataset

NAMES = {0: "train", 1: "valid", 2: "test"}


def exported(root: Path, form: str, **options: Any) -> Path:
    output = root.parent / form / "small"
    export(ExportOptions(prepared=root, format=ExportFormat(form), output=output, **options))
    return output


def same_features(found: Dataset, dataset: Dataset) -> None:
    assert list(found.features) == list(dataset.features)
    for name, features in dataset.features.items():
        assert found.features[name].values.dtype == features.values.dtype
        np.testing.assert_array_equal(found.features[name].values, features.values)


def with_ids(kind: str, ids: list[str]) -> Dataset:
    """The small data set with other ids of its first users or items."""
    dataset = small_dataset()
    others = getattr(dataset, f"{kind}_ids").cast(pa.string()).to_pylist()[len(ids) :]
    return replace(dataset, **{f"{kind}_ids": pa.array([*ids, *others])})


def test_mmrec_is_read_by_build(tmp_path: Path) -> None:
    dataset = small_dataset()
    folder = exported(prepare_small(tmp_path, dataset=dataset), "mmrec")
    found = read(tmp_path, folder)
    assert pairs(found) == pairs(dataset)
    assert found.item_ids.cast(pa.int64()).equals(dataset.item_ids)
    assert found.split_method == "column"
    same_features(found, dataset)
    assert (folder / "i_id_mapping.csv").read_text().splitlines()[:2] == ["asin\titemID", "1000\t0"]
    assert (folder / "u_id_mapping.csv").read_text().splitlines()[6] == "u5\t5"  # a user without an interaction
    numbers = np.loadtxt(folder / "small.inter", np.int64, skiprows=1, delimiter="\t")
    np.testing.assert_array_equal(numbers, np.stack([dataset.user, dataset.item, dataset.split], 1))


@pytest.mark.parametrize("form", ["mmrec", "parquet"])
@pytest.mark.parametrize("weighted", [False, True])
def test_build_makes_the_same_folder_of_an_export(tmp_path: Path, form: str, weighted: bool) -> None:
    """Byte for byte, if it gets the same options: also with text ids in an items table that is not sorted."""
    rng = np.random.default_rng(2)
    users, items, rows = [f"user {n:03d}" for n in range(50)], [f"é{n * 7919 % 1000:03d}" for n in range(30)], 700
    log: dict[str, Any] = {"user": rng.choice(users, rows), "item": rng.choice(items, rows)}
    log["split"] = rng.choice(3, rows, p=[0.8, 0.1, 0.1])
    if weighted:
        log["weight"] = rng.choice([0.25, 1.0, 3.5], rows)
    write(tmp_path / "log.parquet", pa.table(log))
    write(tmp_path / "items.parquet", items_table(items, width=4))
    options: dict[str, Any] = {"parts": 3, "features": ["text", "image"], "method": "random", "item_graph_k": 3}
    options |= {"weight_column": "weight"} if weighted else {}

    def built(name: str, *inputs: Path) -> Path:
        command = BuildOptions(input=[str(path) for path in inputs], output=tmp_path / name, **options)
        return build(command, Stages(quiet=True))

    first = built("first", tmp_path / "log.parquet", tmp_path / "items.parquet")
    assert read_manifest(first).weighted == weighted
    again = read_manifest(built("again", exported(first, form)))
    assert again.parts == read_manifest(first).parts
    assert again.weighted == weighted
    assert again.split == {"mmrec": "column", "parquet": "files"}[form]


def test_recbole(tmp_path: Path) -> None:
    dataset = small_dataset(modalities=3)  # float32, float16, float64
    folder = exported(prepare_small(tmp_path, dataset=dataset), "recbole")
    found = []
    for label, name in NAMES.items():
        header, *lines = (folder / f"small.{name}.inter").read_text().splitlines()
        assert header == "user_id:token\titem_id:token"
        found += [(user, int(item), label) for user, item in (line.split("\t") for line in lines)]
    assert sorted(found) == pairs(dataset)
    header, *lines = (folder / "small.item").read_text().splitlines()
    assert header.split("\t") == ["item_id:token", *(f"{name}_feat:float_seq" for name in dataset.features)]
    columns = list(zip(*(line.split("\t") for line in lines), strict=True))
    assert list(map(int, columns[0])) == dataset.item_ids.to_pylist()
    for texts, features in zip(columns[1:], dataset.features.values(), strict=True):
        values = np.array([list(map(float, text.split(" "))) for text in texts]).astype(features.values.dtype)
        np.testing.assert_array_equal(values, features.values)


def test_recbole_has_no_file_for_an_empty_split(tmp_path: Path) -> None:
    dataset = small_dataset()
    root = prepare_small(tmp_path, dataset=replace(dataset, split=np.where(dataset.split == 1, 0, dataset.split)))
    output = tmp_path / "out"
    lines = export(ExportOptions(prepared=root, format=ExportFormat.RECBOLE, output=output, name="other"))
    assert sorted(path.name for path in output.iterdir()) == ["other.item", "other.test.inter", "other.train.inter"]
    assert any("benchmark_filename: [train, test];" in line for line in lines)


def test_parquet(tmp_path: Path) -> None:
    dataset = small_dataset(modalities=3)
    folder = exported(prepare_small(tmp_path, dataset=dataset), "parquet")
    found = []
    for label, name in enumerate(["train", "validation", "test"]):
        table = pq.read_table(folder / f"{name}.parquet")
        assert table.schema.names == ["user_id", "item_id"]
        assert table["item_id"].type == pa.int64()
        found += [(row["user_id"], row["item_id"], label) for row in table.to_pylist()]
    assert sorted(found) == pairs(dataset)
    items = pq.read_table(folder / "items.parquet")
    assert items["item_id"].combine_chunks().equals(dataset.item_ids)
    for name, features in dataset.features.items():
        column = items[name].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(features.values.shape)
        assert values.dtype == features.values.dtype
        np.testing.assert_array_equal(values, features.values)


def test_weights(tmp_path: Path) -> None:
    """Each with its interaction; 1 for held-out ones, whose weights a prepared folder does not keep."""
    dataset = weighted_dataset()
    assert dataset.weight is not None
    root = prepare_small(tmp_path, dataset=dataset)
    weight = np.where(dataset.split == TRAIN, dataset.weight, np.float32(1))
    users, items = dataset.user_ids.to_pylist(), dataset.item_ids.to_pylist()
    columns = zip(dataset.user, dataset.item, weight, strict=True)
    wanted = sorted((users[user], items[item], float(value)) for user, item, value in columns)

    tables = [pq.read_table(path) for path in exported(root, "parquet").glob("[tv]*.parquet")]
    assert sorted(tuple(row.values()) for table in tables for row in table.to_pylist()) == wanted
    found = []
    for path in exported(root, "recbole").glob("*.inter"):
        header, *lines = path.read_text().splitlines()
        assert header == "user_id:token\titem_id:token\tweight:float"
        rows = [line.split("\t") for line in lines]
        found += [(user, int(item), float(np.float32(value))) for user, item, value in rows]
    assert sorted(found) == wanted
    header, *lines = (exported(root, "mmrec") / "small.inter").read_text().splitlines()
    assert header == "userID\titemID\tx_label\tweight"
    numbers = [line.split("\t") for line in lines]
    assert sorted((users[int(n[0])], items[int(n[1])], float(np.float32(n[3]))) for n in numbers) == wanted


@pytest.mark.parametrize("form", ["mmrec", "recbole"])
def test_masks_that_a_format_cannot_hold_are_counted(tmp_path: Path, form: str) -> None:
    dataset = mask_features(small_dataset())
    root = prepare_small(tmp_path, dataset=dataset)
    lines = export(ExportOptions(prepared=root, format=ExportFormat(form), output=tmp_path / "out"))
    for name, missing in dataset.missing.items():
        assert f"not in it: which {missing.sum()} items have no {name}; their rows are zeros" in lines


def test_masks_are_nulls_in_parquet(tmp_path: Path) -> None:
    dataset = mask_features(small_dataset())
    items = pq.read_table(exported(prepare_small(tmp_path, dataset=dataset), "parquet") / "items.parquet")
    for name, missing in dataset.missing.items():
        np.testing.assert_array_equal(items[f"missing_{name}"].to_numpy(), missing)
        np.testing.assert_array_equal(items[name].is_null().to_numpy(), missing)
        rows = np.array(items[name].drop_null().to_pylist(), dataset.features[name].values.dtype)
        np.testing.assert_array_equal(rows, dataset.features[name].values[~missing])
    again = read(tmp_path, tmp_path / "parquet" / "small", missing=["mask"], split="files")
    for name, missing in dataset.missing.items():
        np.testing.assert_array_equal(again.features[name].missing, missing)
        np.testing.assert_array_equal(again.features[name].values, dataset.features[name].values)


def test_users_without_an_interaction_are_counted(tmp_path: Path) -> None:
    root = prepare_small(tmp_path)
    lines = export(ExportOptions(prepared=root, format=ExportFormat.PARQUET, output=tmp_path / "out"))
    assert "not in it: 1 users without an interaction" in lines


@pytest.mark.parametrize(
    ("form", "kind", "text"),
    itertools.chain(
        itertools.product(["mmrec", "recbole"], ["user", "item"], ["a\tb", "a\nb", "a\rb"]),
        itertools.product(["recbole"], ["user", "item"], ['a"b', "NA", "", "null"]),
    ),
)
def test_ids_that_a_format_cannot_hold_are_refused(tmp_path: Path, form: str, kind: str, text: str) -> None:
    root = prepare_small(tmp_path, dataset=with_ids(kind, [text]))
    with pytest.raises(InputError) as caught:
        exported(root, form)
    assert caught.value.code == "export.ids"
    assert f"1 of {120 if kind == 'user' else 60} {kind} ids" in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / form / "small").exists()
    assert exported(root, "parquet").is_dir()


@pytest.mark.parametrize("form", ["mmrec", "recbole", "parquet"])
def test_only_an_empty_folder_is_written_to(tmp_path: Path, form: str) -> None:
    root = prepare_small(tmp_path)
    output = tmp_path / form / "small"
    output.mkdir(parents=True)
    assert exported(root, form) == output
    before = sorted(output.iterdir())
    for taken in (output, before[0]):
        with pytest.raises(InputError) as caught:
            export(ExportOptions(prepared=root, format=ExportFormat(form), output=taken))
        assert caught.value.code == "export.output"
    assert sorted(output.iterdir()) == before
    assert [path.name for path in output.parent.iterdir()] == ["small"]


def test_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        exported(prepare_small(tmp_path), "mmrec", name="a/b")
    assert caught.value.code == "export.name"
