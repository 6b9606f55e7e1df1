from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.errors import InputError
from partition.relational.connect import connect, parse_bytes
from tests.support.raw_tables import Refused, logged, random_log, read


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_log(tmp_path_factory.mktemp("random") / "log")


@pytest.fixture(scope="module")
def spark() -> Iterator[None]:
    """One session for all tests: it takes seconds to start. Few partitions: each of them takes time."""
    session = pytest.importorskip("pyspark.sql", reason="no pyspark; `make spark` installs it").SparkSession
    if shutil.which("java") is None:
        pytest.skip("no Java, which Spark needs")
    builder = session.builder.master("local[2]").config("spark.sql.shuffle.partitions", "2")
    running = builder.config("spark.ui.enabled", "false").config("spark.log.level", "OFF").getOrCreate()
    yield
    running.stop()


@pytest.mark.usefixtures("spark")
@pytest.mark.parametrize(
    "options",
    [
        {"split": "random", "kcore": 4},
        {"split": "leave-last-out", "weight_column": "strength", "seed": 2**40},
        {"split": "time", "where": "rating >= 2 and event <> 'view'"},
        {"split": "cold-items", "event_weight": "buy=3,click=1", "min_rating": 2},
        {"split": "column", "kcore": 3},
        {"split": "none"},
    ],
    ids=lambda options: options["split"],
)
def test_spark_gives_what_duckdb_gives(source: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    wanted, found = (read(tmp_path, source, engine=engine, **options) for engine in ("duckdb", "spark-local"))
    for name in ("user", "item", "split", "weight"):
        one, other = getattr(wanted, name), getattr(found, name)
        np.testing.assert_array_equal(one, other, name)
        assert one is None or one.dtype == other.dtype
    assert wanted.user_ids.equals(found.user_ids)
    assert wanted.item_ids.equals(found.item_ids)
    assert wanted.counts == found.counts
    assert len(wanted.user) > 100


@pytest.mark.usefixtures("spark")
def test_spark_refuses_a_condition_in_one_line(tmp_path: Path) -> None:
    for where in ("nix(item) > 3", "cast(item as int) > 3"):
        Refused(logged(), "option.where", f'--where "{where}": ', {"where": where, "engine": "spark-local"}).check(
            tmp_path
        )


@pytest.mark.parametrize("engine", ["duckdb", "spark-local"])
def test_names_with_patterns_in_them(tmp_path: Path, engine: str, request: pytest.FixtureRequest) -> None:
    if engine != "duckdb":
        request.getfixturevalue("spark")
    folder = tmp_path / "a [b] {c,d} *?"
    folder.mkdir()
    pq.write_table(pa.table({"id": [3, 1, 2]}), folder / "rows.parquet")
    with connect(engine, folder) as running:
        rows = running.parquet([str(folder / "rows.parquet")])
        kept = running.keep(rows.filter(rows.id > 1))
        assert [batch["id"].to_pylist() for batch in running.batches(kept.order_by("id"))] == [[2, 3]]
    assert [path.name for path in folder.iterdir()] == ["rows.parquet"]


def test_spark_without_java_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with (
        pytest.raises(InputError, match=r"--engine spark-local: (Java|pyspark) is not installed; run `make spark`"),
        connect("spark-local", tmp_path),
    ):
        pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pyspark is not installed") as caught, connect("spark-local", tmp_path):
        pass
    assert caught.value.code == "option.engine"


def test_other_engines_are_refused(tmp_path: Path) -> None:
    Refused(logged(), "option.engine", "--engine sqlite: expected duckdb, ", {"engine": "sqlite"}).check(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512 MiB", 512 * 2**20), ("1.5g", 15 * 10**8), ("2t", 2 * 10**12), ("100000kb", 10**8)],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4", "GB", "4GBs", "-1GB", "63MB", "1e9"])
def test_other_sizes_of_memory_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--memory ") as caught:
        parse_bytes(text)
    assert caught.value.code == "option.memory"
