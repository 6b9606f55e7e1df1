from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.raw_tables import Refused, items_table, logged, pairs, read, text, two_logs, write


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["3", "10", "0"], [0, 3, 10]),
        (["007", "10", "0"], ["0", "007", "10"]),
        (["1e3", "10", "0"], ["0", "10", "1e3"]),
        (["+1", "10", "0"], ["+1", "0", "10"]),
        (["12345678901234567890", "2", "1"], ["1", "12345678901234567890", "2"]),
        (["NA", "null", "x"], ["NA", "null", "x"]),
    ],
)
def test_ids_in_text_are_numbers_only_if_all_are_written_as_such(
    tmp_path: Path, written: list[str], expected: list[Any]
) -> None:
    log = write(tmp_path / "log.csv", pa.table({"uid": written, "iid": ["a", "b", "c"]}))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == expected


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint16(), pa.uint64(), pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_id_types(tmp_path: Path, kind: pa.DataType, suffix: str) -> None:
    numbers = pa.types.is_integer(kind)
    ids: list[Any] = [5, 2, 9, 5] if numbers else ["5", "2", "9", "5"]
    users = pa.chunked_array([pa.array(ids[:2]).cast(kind), pa.array(ids[2:]).cast(kind)])
    log = write(tmp_path / f"log.{suffix}", pa.table({"user_id": users, "item_id": ["a", "a", "b", "c"]}))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == sorted(set(ids))
    assert dataset.user_ids.type == (pa.int64() if numbers else pa.large_string())
    assert [(dataset.user_ids[u].as_py(), i) for u, i in zip(dataset.user, dataset.item, strict=True)] == [
        (ids[1], 0), (ids[0], 0), (ids[0], 2), (ids[2], 1)
    ]  # fmt: skip


def test_dictionary_entries_that_no_row_uses_are_no_users(tmp_path: Path) -> None:
    users = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2], pa.int32()), pa.array(["z", "ghost", "y"]))
    log = write(tmp_path / "log.arrow", pa.table({"user": users, "item": ["a", "a", "b"]}))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == ["y", "z"]


def test_negative_ids_are_ids(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", pa.table({"uid": [-3, 2, -10], "iid": [-1, -1, 0]}))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table([0, -1])))
    assert dataset.user_ids.to_pylist() == [-10, -3, 2]
    assert pairs(dataset) == [(-10, 0, 0), (-3, -1, 0), (2, -1, 0)]


def test_numbers_beyond_64_bits_are_text(tmp_path: Path) -> None:
    """Text files that hold only smaller ones are numbers, which go with it."""
    logs = [
        write(tmp_path / "0.parquet", pa.table({"user": pa.array([2**63, 1], pa.uint64()), "item": ["a", "b"]})),
        write(tmp_path / "1.csv", pa.table({"user": [7, 1], "item": ["a", "c"]})),
    ]
    dataset = read(tmp_path, *logs, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == ["1", "7", str(2**63)]


NULL = ["a", "b", None, "a", "a", "a"]
REFUSED = {
    "null user": Refused(text("user,item\nu,a\n,b\n"), "ids.missing", "log.csv: column 'user': 1 of 2 "),
    "null item": Refused(logged(item=NULL, suffix="parquet"), "ids.missing", "log.parquet: column 'item': 1 of 6 "),
    "float ids": Refused(logged(user=[0.5] * 6, suffix="parquet"), "ids.type", "log.parquet: column 'user': "),
    "numbers and text": Refused(
        two_logs({"user": [1], "item": ["a"]}, {"user": ["1"], "item": ["a"]}),
        "ids.mixed",
        "0.parquet: column 'user': ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    REFUSED[case].check(tmp_path)
