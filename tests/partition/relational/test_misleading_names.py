"""Names of folders and columns that an engine could take for something else, and values that compare oddly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.errors import InputError
from partition.transform.dataset import Dataset
from tests.support.raw_tables import items_table, read

USER, ITEM = [1, 1, 2, 2], ["a", "b", "a", "b"]


def prepared(tmp_path: Path, columns: dict[str, Any], folder: str = "in", **options: Any) -> Dataset:
    """The data set of a log below `folder`; whatever `--split` says, all of it is training unless options say else."""
    place = tmp_path / folder
    place.mkdir(parents=True)
    pq.write_table(pa.table({"user": USER, "item": ITEM} | columns), place / "log.parquet")
    pq.write_table(items_table(("a", "b")), place / "items.parquet")
    return read(tmp_path, place, **{"split": "none"} | options)


@pytest.mark.parametrize("folder", ["user=9", "item=x/deep", "id=1", "number=3", "w=9"])
def test_a_folder_named_like_a_key_is_no_column(tmp_path: Path, folder: str) -> None:
    dataset = prepared(tmp_path, {"w": [1.0, 2.0, 3.0, 4.0]}, folder, weight_column="w")
    assert dataset.user_ids.to_pylist() == [1, 2]
    assert dataset.item.tolist() == [0, 1, 0, 1]
    assert dataset.weight is not None
    assert dataset.weight.tolist() == [1, 2, 3, 4]


def test_columns_that_differ_in_case_are_told_apart(tmp_path: Path) -> None:
    columns = {"w": [1.0] * 4, "W": [2.0] * 4, "W_1": [3.0] * 4}
    for name, value in (("w", 1), ("W", 2), ("W_1", 3)):
        found = prepared(tmp_path / name, columns, weight_column=name).weight
        assert found is not None
        assert set(found.tolist()) == {value}
    with pytest.raises(InputError, match="differ in case alone") as caught:
        prepared(tmp_path / "both", columns, where='w = 1 and "W" = 2')
    assert caught.value.code == "option.where"


def test_a_named_column_is_not_taken_for_a_role(tmp_path: Path) -> None:
    columns = {"own_weight": [1, 2, 3, 4], "own_car": [1, 1, 1, 0], "own_user": [5, 5, 5, 5]}
    assert prepared(tmp_path / "weight", columns, where="own_weight > 1").weight is None
    assert len(prepared(tmp_path / "car", columns, where="own_car = 1 and own_user = 5").user) == 3


def test_a_rating_that_is_no_number_is_no_high_one(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, {"rating": [np.nan, 5.0, np.nan, 1.0]}, min_rating=4)
    assert dataset.user.tolist() == [0]
    assert dataset.counts["low_ratings_dropped"] == 3


def test_a_random_condition_has_one_value_per_row(tmp_path: Path) -> None:
    dataset = prepared(tmp_path, {"one": [1] * 4}, where="random() < 0.5 or one = 1")
    assert dataset.counts["duplicates_merged"] == 0
    assert len(dataset.user) == 4


def test_bounds_in_time(tmp_path: Path) -> None:
    columns = {"time": [1, 2, 3, 4]}
    dataset = prepared(tmp_path / "huge", columns, split="time", validate_from="1e30", test_from="1e300")
    assert dataset.split.tolist() == [0] * 4
    with pytest.raises(InputError, match=r"--test-from 3: add --split time") as caught:
        prepared(tmp_path / "unread", columns, split="random", test_from="3")
    assert caught.value.code == "option.time"


def test_text_that_is_not_utf8_ends_in_one_line(tmp_path: Path) -> None:
    raw = pa.StringArray.from_buffers(4, pa.array(["a", "b", "a", "b"]).buffers()[1], pa.py_buffer(b"a\xffab"))
    with pytest.raises(InputError, match=r"UTF|utf|encoding"):
        prepared(tmp_path, {"user": raw})


@pytest.mark.parametrize(("kind", "first"), [(pa.float32(), 2**24), (pa.float64(), 2**53)])
def test_floats_that_may_stand_for_two_ids_are_refused(tmp_path: Path, kind: pa.DataType, first: int) -> None:
    fine, wrong = pa.array([first - 1.0] * 4, kind), pa.array([float(first)] * 4, kind)
    assert prepared(tmp_path / "fine", {"user": fine}).user_ids.to_pylist() == [first - 1]
    with pytest.raises(InputError):
        prepared(tmp_path / "wrong", {"user": wrong})
