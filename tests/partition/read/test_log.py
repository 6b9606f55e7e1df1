from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from partition.errors import InputError
from partition.read import log as log_module
from partition.read.log import Log, open_log
from partition.read.table_file import open_table

PAIR = {"user": "user_id", "item": "item_id"}
BIG = 1_234_567_890_123_456_789


def write(path: Path, table: pa.Table) -> Path:
    suffix = path.suffix
    if suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    elif suffix in (".arrow", ".stream"):
        path = path.with_suffix(".arrow")
        new = ipc.new_file if suffix == ".arrow" else ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist()))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",").writerows(
                [table.column_names, *([*row.values()] for row in table.to_pylist())]
            )
    return path


def opened(path: Path, *extra: str, **roles: str) -> tuple[Log, dict[str, list[Any]]]:
    file = open_table(path)
    log = open_log(file, PAIR | roles, extra, path.parent / "work")
    table = pa.concat_tables(pq.read_table(part, partitioning=None) for part in log.parquet)
    assert log.rows == len(table)
    names = log.columns | {f"--where {name}": name for name in extra}
    return log, {role: table[name].to_pylist() for role, name in names.items()}


def pair(users: Any, items: Any = ("a", "b"), **columns: Any) -> pa.Table:
    return pa.table({"user_id": users, "item_id": list(items), **columns})


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "stream", "jsonl", "csv", "tsv"])
def test_every_format_gives_the_same_log(tmp_path: Path, suffix: str) -> None:
    users, items = [f"u{k}" for k in range(10)], [BIG + k for k in range(10)]
    times = [1_700_000_000 + k for k in range(10)]
    table = pair(users, items, timestamp=times, rating=[0.5 * k for k in range(10)], event=["view", "buy"] * 5)
    path = write(tmp_path / f"log.{suffix}", table)
    log, found = opened(path, "rating", time="timestamp", rating="rating", event="event")
    assert log.numeric == log.whole == {"user": False, "item": True}
    assert [int(item) for item in found["item"]] == items
    assert (found["user"], found["time"], found["event"]) == (users, times, ["view", "buy"] * 5)
    assert found["rating"] == found["--where rating"] == [0.5 * k for k in range(10)]
    assert not log.dated
    assert log.is_copy == (suffix != "parquet")


def test_parquet_that_fits_is_read_where_it_lies(tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", pair([1, 2], x_label=[0, 2], time=[3, 4], more=[[1], [2]]))
    log, found = opened(path, "more", split="x_label", time="time")
    assert log.parquet == (str(path),)
    assert not (tmp_path / "work").exists()
    assert found == {"user": [1, 2], "item": ["a", "b"], "split": [0, 2], "time": [3, 4], "--where more": [[1], [2]]}


@pytest.mark.parametrize(
    ("column", "values", "roles"),
    [
        ("user_id", pa.array([1, 2], pa.uint64()), {}),  # may hold what 64 bits with a sign do not
        ("user_id", pa.array([1.0, 2.0]), {}),
        ("time", pa.array([1.0, 2.0]), {"time": "time"}),  # a NaN is not counted in the statistics
        ("time", pa.array([1, 2], pa.timestamp("s")), {"time": "time"}),
        ("x_label", pa.array(["train", "test"]), {"split": "x_label"}),
    ],
)
def test_parquet_that_does_not_fit_is_copied(tmp_path: Path, column: str, values: pa.Array, roles: Any) -> None:
    columns = {"user_id": pa.array(["u", "v"]), column: values}
    path = write(tmp_path / "log.parquet", pa.table({"item_id": ["a", "b"], **columns}))
    assert opened(path, **roles)[0].is_copy


def test_parquet_without_statistics_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pair(["u", "v"]), path, write_statistics=False)
    assert opened(path)[0].is_copy
    pq.write_table(pair(["u", None]), path, write_statistics=False)
    with pytest.raises(InputError, match=r"column 'user_id': 1 of 2 rows have no user id; first: row 1$"):
        opened(path)


MISSING: dict[str, tuple[dict[str, Any], dict[str, str], str, str]] = {
    "user": ({"user_id": ["u", None, "v", None]}, {}, "ids.missing", "2 of 4 rows have no user id"),
    "item": ({"item_id": ["a", None, None, None]}, {}, "ids.missing", "3 of 4 rows have no item id"),
    "time": ({"ts": [1, None, None, 4]}, {"time": "ts"}, "time.missing", "2 of 4 rows have no time"),
    "split": (
        {"fold": ["train", None, "test", None]},
        {"split": "fold"},
        "split.label",
        "2 of 4 rows have no split label",
    ),
}


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("case", MISSING)
def test_missing_values_are_all_counted(tmp_path: Path, case: str, suffix: str) -> None:
    columns, roles, code, message = MISSING[case]
    table = pa.table({"user_id": [1, 2, 3, 4], "item_id": list("abcd")} | columns)
    path = write(tmp_path / f"log.{suffix}", table)
    with pytest.raises(InputError) as caught:
        opened(path, **roles)
    line = {"csv": " (line 3)", "tsv": " (line 3)", "jsonl": " (line 2)"}.get(suffix, "")
    assert caught.value.code == code
    assert str(caught.value) == f"{path}: column {next(iter(columns))!r}: {message}; first: row 1{line}"
    assert not list((tmp_path / "work").glob("*"))


NOT_A_TIME = "values are not times like the others"
REFUSED = {
    "split": (["train", "maybe", "test", "never"], "split.label", "2 of 4 split labels are unknown", 1),
    "time: numbers": (["1", "2", "soon", "4.5"], "time.type", f"1 of 4 {NOT_A_TIME}", 2),
    "time: dates": (["2026-01-01", "2026-01-02 10:00", "2026-13-01", "5"], "time.type", f"2 of 4 {NOT_A_TIME}", 2),
    "time: endless": (["1", "2", "inf", "nan"], "time.missing", "2 of 4 times are not finite", 2),
    "rating": (["1", "bad", "2.5", "2"], "rating.type", "1 of 4 values are not numbers", 1),
    "weight": (["1", "2.5", "2", "1e"], "weight.type", "1 of 4 values are not numbers", 3),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_values_are_all_counted(tmp_path: Path, case: str) -> None:
    values, code, message, row = REFUSED[case]
    path = write(tmp_path / "log.csv", pair(["u"] * 4, "aaaa", x=values))
    with pytest.raises(InputError) as caught:
        opened(path, **{case.split(":")[0]: "x"})
    assert caught.value.code == code
    expected = f"{path}: column 'x': {message}; first: row {row} (line {row + 2}), '{values[row]}'"
    assert str(caught.value).startswith(expected)


def test_numbers_beyond_64_bits_are_text_and_come_back_as_they_were(tmp_path: Path) -> None:
    values = {
        "uint64": pa.array([5, 2**64 - 1], pa.uint64()),
        "decimal": pa.array([Decimal(5), Decimal(10) ** 30], pa.decimal128(38, 0)),
        "text": pa.array(["5", str(10**30)]),
    }
    for name, users in values.items():
        path = write(tmp_path / (f"{name}.csv" if name == "text" else f"{name}.parquet"), pair(users))
        log, found = opened(path)
        assert found["user"] == [str(value) for value in users.to_pylist()]
        assert (log.numeric["user"], log.whole["user"]) == (False, True)


@pytest.mark.parametrize(
    ("texts", "expected", "dated"),
    [
        (["3", "-4"], [3, -4], False),
        (["3", "4.5"], [3.0, 4.5], False),
        (["1970-01-01", "1970-01-01 00:00:01.5"], [0, 1_500_000], True),
        (["1970-01-01T00:00:01Z", "1970-01-01T02:00:00+02:00"], [1_000_000, 0], True),
    ],
)
def test_times_in_text(tmp_path: Path, texts: list[str], expected: list[float], dated: bool) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        path = write(tmp_path / f"log.{suffix}", pair(["u", "v"], ts=texts))
        log, found = opened(path, time="ts")
        assert (found["time"], log.dated) == (expected, dated)
        assert [type(value) for value in found["time"]] == [type(value) for value in expected]


def test_a_type_that_shows_late_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.read.text_file.CHUNK_BYTES", 64)
    users = ["1"] * 500 + ["007"]
    path = write(tmp_path / "log.csv", pair(users, ["a"] * 501, mark=["1"] * 400 + ["1.5"] * 101, n=["2"] * 501))
    log, found = opened(path, "mark", "n")
    assert not log.numeric["user"]
    assert found["user"] == users
    assert (found["--where mark"], found["--where n"]) == ([1.0] * 400 + [1.5] * 101, [2] * 501)


def test_columns_of_an_expression_keep_their_names(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("User,item_id,day\nu,a,2026-01-01\nv,b,2026-01-02\n")
    file = open_table(path)
    log = open_log(file, {"user": "User", "item": "item_id", "time": "day"}, ["day", "User"], tmp_path / "work")
    table = pq.read_table(log.parquet[0])
    assert table["day"].to_pylist() == ["2026-01-01", "2026-01-02"]
    assert table["User"].to_pylist() == table[log.columns["user"]].to_pylist() == ["u", "v"]
    assert table[log.columns["time"]].to_pylist() == [1_767_225_600_000_000, 1_767_312_000_000_000]
    assert len({name.casefold() for name in table.column_names}) == len(table.column_names)


def test_a_copy_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", pair(["u", "v"]))
    first = opened(path)[0]
    stamp = Path(first.parquet[0]).stat().st_mtime_ns
    assert opened(path)[0] == first
    assert Path(first.parquet[0]).stat().st_mtime_ns == stamp
    write(path, pair(["w", "x"], "cd"))
    assert opened(path)[1] == {"user": ["w", "x"], "item": ["c", "d"]}


def test_a_log_without_rows(tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        log, found = opened(write(tmp_path / f"log.{suffix}", pair(pa.array([], pa.string()), ())))
        assert (log.rows, found) == (0, {"user": [], "item": []})


def test_more_than_2_gib_of_ids_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few long ids: 2.1 GiB of text in Arrow, which compresses well."""
    monkeypatch.setattr(log_module, "_BATCH_ROWS", 64)
    text = "x" * (1 << 20)
    kind = pa.schema([("user_id", pa.large_string()), ("item_id", pa.string())])
    path = tmp_path / "log.parquet"
    with pq.ParquetWriter(path, kind, compression="zstd", write_statistics=False, use_dictionary=False) as writer:
        for part in range(33):
            users = pa.array([f"{part}-{row}-{text}" for row in range(64)], pa.large_string())
            writer.write_table(pa.table([users, pa.array(["a"] * 64)], schema=kind))
    own, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        log = open_log(open_table(path), PAIR, (), tmp_path / "work")
    finally:
        pa.set_memory_pool(own)
    assert 1 << 26 < counted.max_memory() < 1 << 30
    assert log.rows == 33 * 64
    assert log.is_copy
    with pq.ParquetFile(log.parquet[0]) as file:
        last = file.read_row_group(file.num_row_groups - 1, ["user"])["user"]
    assert last.type == pa.large_string()
    assert last[-1].as_py() == f"32-63-{text}"
