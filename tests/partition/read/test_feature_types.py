"""Every kind of Arrow column in an items table: used, refused by name, or no column of numbers."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partition.errors import InputError
from partition.read.feature_types import is_feature_type, is_refused_type, why_unusable
from tests.support.raw_tables import items_table, read, table, write

ROWS = [[1, 2], [3, 4], [5, 6], [7, 9]]
NESTED = [[row] for row in ROWS]
NUMBERS = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64()),
]


def lists_of(kind: pa.DataType) -> list[pa.DataType]:
    return [pa.list_(kind), pa.large_list(kind), pa.list_(kind, 2), pa.list_view(kind), pa.large_list_view(kind)]


def tensors(values: np.ndarray) -> pa.Array:
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)


USED = {
    **{str(kind): pa.array(ROWS, kind) for number in NUMBERS for kind in lists_of(number)},
    **{
        f"{outer}, one each": pa.array(NESTED, outer)
        for number in (pa.float32(), pa.int64())
        for inner in lists_of(number)
        for outer in (pa.list_(inner), pa.large_list(inner), pa.list_(inner, 1), pa.list_view(inner))
    },
    "three levels": pa.array([[row] for row in NESTED], pa.list_(pa.list_(pa.list_(pa.float64())))),
    "tensor": tensors(np.array(ROWS, np.float32)),
    "tensor of one row": tensors(np.array(NESTED, np.float64)),
    "tensor of integers": tensors(np.array(ROWS, np.int16)),
}
REFUSED = {
    **{f"bool in {kind}": pa.array([[True, False]] * 4, kind) for kind in lists_of(pa.bool_())},
    "bool8": pa.ListArray.from_arrays(
        [0, 1, 2, 3, 4], pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1] * 4, "int8"))
    ),
    "decimal128": pa.array([[Decimal("1.50")]] * 4, pa.list_(pa.decimal128(5, 2))),
    "decimal256": pa.array([[Decimal("1.50")]] * 4, pa.list_(pa.decimal256(50, 2))),
    "list of lists of bool": pa.array([[[True]]] * 4, pa.list_(pa.list_(pa.bool_()))),
    "matrices": tensors(np.zeros((4, 2, 3), np.float32)),
    "encoded lists": pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 1]), pa.array([[1.0], [2.0]])),
    "dictionary of numbers": pa.ListArray.from_arrays([0, 1, 2, 3, 4], pa.array([0.5] * 4).dictionary_encode()),
}
ATTRIBUTES = {
    "text": pa.array([["a"]] * 4),
    "large text": pa.array([["a"]] * 4, pa.large_list(pa.large_string())),
    "bytes": pa.array([[b"a"]] * 4),
    "dates": pa.array([[date(2020, 1, 1)]] * 4),
    "nothing": pa.array([[]] * 4, pa.list_(pa.null())),
    "structs": pa.array([[{"a": 1.0}]] * 4),
    "list of lists of text": pa.array([[["a"]]] * 4),
    "struct": pa.array([{"a": 1.0}] * 4),
    "map": pa.array([[("a", 1.0)]] * 4, pa.map_(pa.string(), pa.float64())),
    "number": pa.array([1.0] * 4),
    "string": pa.array(["[1.0, 2.0]"] * 4),
    "binary": pa.array([b"1234"] * 4),
}


def inputs(folder: Path, column: pa.Array, suffix: str = "arrow") -> list[Path]:
    content = items_table().select(["item", "text"]).append_column("image", column)
    return [write(folder / "log.csv", table()), write(folder / f"items.{suffix}", content)]


@pytest.mark.parametrize("name", USED)
def test_used(tmp_path: Path, name: str) -> None:
    column = USED[name]
    assert is_feature_type(column.type)
    assert not is_refused_type(column.type)
    features = read(tmp_path, *inputs(tmp_path, column)).features
    assert list(features) == ["image", "text"]
    np.testing.assert_array_equal(features["image"].values, np.array(ROWS))
    inner = column.type
    while not isinstance(inner, pa.DataType) or not (pa.types.is_floating(inner) or pa.types.is_integer(inner)):
        inner = inner.storage_type if isinstance(inner, pa.BaseExtensionType) else inner.value_type
    kept = np.dtype(inner.to_pandas_dtype()) if pa.types.is_floating(inner) else np.dtype(np.float32)
    assert features["image"].values.dtype == kept


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("named", [True, False])
def test_refused_by_name(tmp_path: Path, name: str, named: bool) -> None:
    column = REFUSED[name]
    options: dict[str, Any] = {"features": ["image"]} if named else {}
    with pytest.raises(InputError, match=r"items\.arrow: column 'image': holds ") as caught:
        read(tmp_path, *inputs(tmp_path, column), **options)
    assert caught.value.code == "features.column"
    assert str(why_unusable(column.type)) in str(caught.value)
    # The remedy that the message names: the other modalities can be used without it.
    assert list(read(tmp_path, tmp_path / "log.csv", tmp_path / "items.arrow", features=["text"]).features) == ["text"]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_are_no_features_and_refused_only_if_they_are_named(tmp_path: Path, name: str) -> None:
    column = ATTRIBUTES[name]
    assert not is_feature_type(column.type)
    assert not is_refused_type(column.type)
    places = inputs(tmp_path, column)
    assert list(read(tmp_path, *places).features) == ["text"]
    with pytest.raises(InputError, match="image") as caught:
        read(tmp_path, *places, features=["image", "text"])
    assert caught.value.code == "features.unknown"
    with pytest.raises(InputError, match=r"items\.arrow: column 'image': ") as caught:
        read(tmp_path, *places, features=[f"image={places[1]}"])
    assert caught.value.code == "features.column"


@pytest.mark.parametrize("kind", [pa.list_(pa.float32(), 2), pa.list_(pa.int64()), pa.list_(pa.list_(pa.float32()))])
def test_parquet_gives_the_same_rows(tmp_path: Path, kind: pa.DataType) -> None:
    rows = NESTED if pa.types.is_list(kind.value_type) else ROWS
    found = read(tmp_path, *inputs(tmp_path, pa.array(rows, kind), "parquet")).features["image"].values
    np.testing.assert_array_equal(found, np.array(ROWS))


def test_a_list_of_several_lists_is_refused_with_their_number(tmp_path: Path) -> None:
    column = pa.array([[[1.0]], [[2.0], [3.0]], [[4.0]], [[5.0], [6.0]]])
    with pytest.raises(InputError) as caught:
        read(tmp_path, *inputs(tmp_path, column))
    assert str(caught.value).endswith("items.arrow: column 'image', row 1: 2 lists; an item has one; 2 of 4 rows")
    assert caught.value.code == "features.shape"


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint32(), pa.int64(), pa.uint64()])
def test_integers_that_float32_does_not_hold_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    exact = pa.array([[2**24], [1], [2], [3]], pa.list_(kind))
    assert read(tmp_path, *inputs(tmp_path, exact)).features["image"].values[0, 0] == 2**24
    large = pa.array([[1], [2], [2**24 + 1], [2**24 + 2]], pa.list_(kind))
    with pytest.raises(
        InputError, match=r"row 2: value 0 is 16777217, which float32 does not hold; .*; 2 of 4 rows$"
    ) as caught:
        read(tmp_path, *inputs(tmp_path, large))
    assert caught.value.code == "features.value"
