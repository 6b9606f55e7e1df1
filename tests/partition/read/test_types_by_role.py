"""Every Arrow type in every role of a log is used, with the values checked, or refused by name; never dropped."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from partition.errors import InputError
from partition.read import id_values
from partition.read.log import open_log
from partition.read.table_file import open_table

ROLES = ("user", "item", "time", "split", "rating", "weight", "event")
IDS, NUMBERS = ("user", "item"), ("rating", "weight")
UUIDS = [uuid.UUID(int=1), uuid.UUID(int=2)]
Used = dict[str, list[Any]]
WHOLE: Used = {key: [0, 2] for key in (*IDS, "time", "split")} | {key: [0.0, 2.0] for key in NUMBERS}
INTEGER: Used = WHOLE | {"event": ["0", "2"]}
FLOAT: Used = WHOLE | {"time": [0.0, 2.0]}
TEXT: Used = {
    **{key: ["0", "2"] for key in (*IDS, "event")},
    "time": [0, 2],
    "split": [0, 2],
    **{key: [0.0, 2.0] for key in NUMBERS},
}
DECIMAL: Used = {role: values for role, values in WHOLE.items() if role != "split"}
DATE = [datetime.date(1970, 1, 1), datetime.date(1970, 1, 2)]
DAYS: Used = {"time": [0, 86_400_000_000]}
TWO_SECONDS: Used = {"time": [0, 2_000_000]}
Case = tuple[pa.Array, Used]


def integers(kind: pa.DataType) -> Case:
    return pa.array([0, 2], kind), INTEGER


def stamps(unit: str, zone: str | None = None) -> Case:
    times = [datetime.datetime(1970, 1, 1), datetime.datetime(1970, 1, 1, 0, 0, 2)]
    return pa.array(times, pa.timestamp("us")).cast(pa.timestamp(unit)).cast(pa.timestamp(unit, zone)), TWO_SECONDS


def nothing(values: pa.Array) -> Case:
    return values, {}


TYPES: dict[str, Case] = {
    **{str(kind): integers(kind) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{str(kind): integers(kind) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    **{str(kind): (pa.array([0, 2], kind), FLOAT) for kind in (pa.float16(), pa.float32(), pa.float64())},
    **{
        str(kind): (pa.array([Decimal(0), Decimal(2)], kind), DECIMAL)
        for kind in (pa.decimal32(9), pa.decimal64(18), pa.decimal128(38), pa.decimal256(76))
    },
    "decimal128 with a scale": (pa.array([Decimal("0.00"), Decimal("2.00")]), DECIMAL | {"time": [0.0, 2.0]}),
    **{str(kind): (pa.array(["0", "2"], kind), TEXT) for kind in (pa.string(), pa.large_string(), pa.string_view())},
    "dictionary of string": (pa.array(["0", "2"]).dictionary_encode(), TEXT),
    "dictionary of string_view": (
        pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), pa.array(["0", "2"], pa.string_view())),
        TEXT,
    ),
    "dictionary of int64": (pa.array([0, 2]).dictionary_encode(), INTEGER),
    "runs of string": (pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array(["0", "2"])), TEXT),
    "uuid": (
        pa.array([value.bytes for value in UUIDS], pa.uuid()),
        {key: [str(value) for value in UUIDS] for key in IDS},
    ),
    "fixed_size_binary": (pa.array([b"\x00\xab", b"zz"], pa.binary(2)), {key: ["00ab", "7a7a"] for key in IDS}),
    "bool": (pa.array([False, True]), {"event": ["false", "true"]}),
    "date32": (pa.array(DATE, pa.date32()), DAYS),
    "date64": (pa.array(DATE, pa.date64()), DAYS),
    **{f"timestamp {unit}": stamps(unit) for unit in ("s", "ms", "us", "ns")},
    "timestamp with a zone": stamps("ms", "UTC"),
    "binary": nothing(pa.array([b"0", b"2"])),
    "large_binary": nothing(pa.array([b"0", b"2"], pa.large_binary())),
    "binary_view": nothing(pa.array([b"0", b"2"], pa.binary_view())),
    "time32": nothing(pa.array([0, 2], pa.time32("s"))),
    "time64": nothing(pa.array([0, 2], pa.time64("us"))),
    "duration": nothing(pa.array([0, 2], pa.duration("s"))),
    "interval": nothing(pa.array([(0, 0, 0), (0, 2, 0)], pa.month_day_nano_interval())),
    "list": nothing(pa.array([[0], [2]])),
    "large_list": nothing(pa.array([[0], [2]], pa.large_list(pa.int64()))),
    "list_view": nothing(pa.array([[0], [2]], pa.list_view(pa.int64()))),
    "large_list_view": nothing(pa.array([[0], [2]], pa.large_list_view(pa.int64()))),
    "fixed_size_list": nothing(pa.array([[0], [2]], pa.list_(pa.int64(), 1))),
    "struct": nothing(pa.array([{"a": 0}, {"a": 2}])),
    "map": nothing(pa.array([[("a", 0)], [("a", 2)]], pa.map_(pa.string(), pa.int64()))),
    "union": nothing(pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([0, 2])])),
    "json": nothing(pa.array(["0", "2"], pa.json_())),
    "bool8": nothing(pa.array([0, 1], pa.bool8())),
    "opaque": nothing(pa.array(["0", "2"], pa.opaque(pa.string(), "a", "b"))),
    "fixed_shape_tensor": nothing(pa.array([[0], [2]], pa.fixed_shape_tensor(pa.int64(), [1]))),
    "dictionary of date": (pa.array(DATE).dictionary_encode(), DAYS),
    "dictionary of binary": nothing(pa.array([b"0", b"2"]).dictionary_encode()),
}


def arrow_file(path: Path, values: pa.Array, role: str) -> tuple[Path, dict[str, str]]:
    others = {"user": "u", "item": "a"}
    table = pa.table({name: [value] * len(values) for name, value in others.items() if name != role} | {"x": values})
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path, {name: name for name in others if name != role} | {role: "x"}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", TYPES)
def test_used_or_refused_by_name(tmp_path: Path, name: str, role: str) -> None:
    values, used = TYPES[name]
    path, roles = arrow_file(tmp_path / "log.arrow", values, role)
    file = open_table(path)
    if role in used:
        log = open_log(file, roles, (), tmp_path / "work")
        found = pq.read_table(log.parquet[0])[log.columns[role]].to_pylist()
        assert found == used[role]
        assert [type(value) for value in found] == [type(value) for value in used[role]]
        return
    with pytest.raises(InputError) as caught:
        open_log(file, roles, (), tmp_path / "work")
    assert str(caught.value).startswith(f"{path}: column 'x': has type {values.type}; ")
    assert caught.value.code == {"user": "ids.type", "item": "ids.type", "split": "split.label"}.get(
        role, f"{role}.type"
    )
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("role", ROLES)
def test_a_column_without_a_value(tmp_path: Path, role: str) -> None:
    path, roles = arrow_file(tmp_path / "log.arrow", pa.nulls(2), role)
    if role in (*NUMBERS, "event"):
        log = open_log(open_table(path), roles, (), tmp_path / "work")
        assert pq.read_table(log.parquet[0])[log.columns[role]].to_pylist() == [None, None]
        return
    with pytest.raises(InputError, match=r"2 of 2 rows have no .*; first: row 0$"):
        open_log(open_table(path), roles, (), tmp_path / "work")


def test_a_null_in_a_dictionary_is_a_missing_id(tmp_path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), pa.array(["a", None]))
    path, roles = arrow_file(tmp_path / "log.arrow", values, "user")
    with pytest.raises(InputError, match=r"2 of 3 rows have no user id; first: row 1$"):
        open_log(open_table(path), roles, (), tmp_path / "work")


@pytest.mark.parametrize("role", IDS)
@pytest.mark.parametrize(
    ("values", "first"),
    [
        (pa.array([1.0, 1.5, 2.5]), "1.5"),
        (pa.array([1.0, float("nan"), float("inf")]), "nan"),
        (pa.array([1.0, 2.0**53 + 2, -(2.0**60)]), "9007199254740994.0"),
        (pa.array([Decimal("1.00"), Decimal("1.50"), Decimal("0.01")]), "1.50"),
    ],
)
def test_numbers_that_cannot_be_ids_are_counted(tmp_path: Path, values: pa.Array, first: str, role: str) -> None:
    path, roles = arrow_file(tmp_path / "log.arrow", values, role)
    with pytest.raises(InputError) as caught:
        open_log(open_table(path), roles, (), tmp_path / "work")
    message = (
        f"2 of 3 {role} ids are not whole numbers (floats: below 2^53, of 32 bits below 2^24); first: row 1, '{first}'"
    )
    assert str(caught.value) == f"{path}: column 'x': {message}"


def test_negative_and_large_ids_come_back_as_they_were(tmp_path: Path) -> None:
    for kind in (pa.int64(), pa.decimal128(38), pa.string()):
        values = pa.array([-5, 2**63 - 1, -(2**63)]).cast(kind) if kind != pa.string() else pa.array(["-5", "007", ""])
        path, roles = arrow_file(tmp_path / "log.arrow", values, "user")
        log = open_log(open_table(path), roles, (), tmp_path / "work")
        expected = values.to_pylist() if kind == pa.string() else [-5, 2**63 - 1, -(2**63)]
        assert pq.read_table(log.parquet[0])["user"].to_pylist() == expected


def test_slices_and_nulls_of_binary_ids() -> None:
    values = pa.array([b"no", b"\x00\xff", None, b"zz"], pa.binary(2)).slice(1)
    found, wrong = id_values.ids(values, "text")
    found.validate(full=True)
    assert found.to_pylist() == ["00ff", None, "7a7a"]
    assert not wrong.any()
