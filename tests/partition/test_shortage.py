"""A full disk and too little memory come as one line that names the file, whoever runs into them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.errors import ResourceError
from partition.shortage import shortage
from tests.support.full_disk import small_disk

ROWS = 1 << 20  # of 8 bytes: more than fits on the disk
SORTED = f"CREATE TABLE t AS SELECT hash(range) a, hash(range + 1) b FROM range({4 * ROWS}) ORDER BY a"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    with small_disk(tmp_path / "disk", 4 << 20) as folder:
        yield folder


def engine(folder: Path | None, **settings: str) -> duckdb.DuckDBPyConnection:
    spill = "" if folder is None else str(folder)
    return duckdb.connect(config={"memory_limit": "50MB", "threads": 2, "temp_directory": spill, **settings})


def spills(folder: Path) -> None:
    engine(folder).execute(SORTED)


def spills_without_limit(folder: Path) -> None:
    engine(folder, max_temp_directory_size="1TB").execute(SORTED)


def copies(folder: Path) -> None:
    engine(None).execute(f"COPY (SELECT hash(range) FROM range({ROWS})) TO '{folder / 'copy.parquet'}'")


def writes_parquet(folder: Path) -> None:
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(ROWS)}), folder / "table.parquet")


def writes_arrow(folder: Path) -> None:
    table = pa.table({"a": np.arange(ROWS)})
    with pa.OSFile(str(folder / "table.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def saves(folder: Path) -> None:
    np.save(folder / "matrix.npy", np.arange(ROWS))


def saves_several(folder: Path) -> None:
    np.savez(folder / "matrices.npz", a=np.arange(ROWS))


@pytest.mark.parametrize(
    "writes", [spills, spills_without_limit, copies, writes_parquet, writes_arrow, saves, saves_several]
)
def test_a_full_disk_is_one_error_that_names_the_place(disk: Path, writes: Callable[[Path], None]) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, shortage(disk):
        writes(disk)
    assert caught.value.errno == errno.ENOSPC
    assert str(caught.value.filename).startswith(str(disk))
    assert "\n" not in str(caught.value)


def test_too_little_memory_says_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught, shortage(tmp_path):
        engine(None).execute(SORTED)
    assert caught.value.code == "engine.memory"
    assert "--memory" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("else"), OSError("Couldn't deserialize thrift"), KeyError("a")])
def test_other_errors_are_left_alone(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, shortage(tmp_path):
        raise error
    assert caught.value is error
    assert "No space" not in str(error)
