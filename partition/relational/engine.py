"""The engines that run Ibis expressions on tables: DuckDB in this process, or Spark.

What they keep and what they spill lies in a folder of the work folder, and goes when the engine is closed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ibis.expr.types as ir
import psutil
import pyarrow as pa

from partition.errors import InputError
from partition.files import remove

BATCH = 1 << 18  # rows that leave an engine at a time
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Engine(ABC):
    """Reads Parquet, runs expressions, keeps their results for further expressions.

    Attributes:
        dialect: of the SQL that it understands, by the name that sqlglot has for it.
        errors: what it raises for SQL that it cannot run.
    """

    dialect: str
    errors: tuple[type[Exception], ...]

    @abstractmethod
    def parquet(self, files: Sequence[str]) -> ir.Table:
        """The rows of Parquet files of one schema, in any order."""

    @abstractmethod
    def keep(self, table: ir.Table) -> ir.Table:
        """Computes a table once, for several expressions; `drop` frees its memory and its place on the disk."""

    @abstractmethod
    def drop(self, table: ir.Table) -> None:
        """Forgets a table that `keep` returned."""

    @abstractmethod
    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a table, in its order if it is ordered, at most about `BATCH` at a time."""

    @abstractmethod
    def close(self) -> None:
        """Ends the engine."""

    def number(self, value: ir.Scalar) -> int:
        """Computes one whole number; 0 for null."""
        return int(value.to_pyarrow().as_py() or 0)


@contextmanager
def connect(name: str, folder: Path, memory: str | None = None, threads: int | None = None) -> Iterator[Engine]:
    """Starts an engine.

    Args:
        name: `duckdb`, `spark-local`, or the URL of a Spark master.
        folder: for what it keeps and spills.
        memory: limit, such as 4GB; by default half of the machine's.
        threads: limit; by default one per core.

    Raises:
        InputError: `option.engine`, an unknown name or one whose software is not installed; `option.memory`.
    """
    size = psutil.virtual_memory().total // 2 if memory is None else parse_bytes(memory)
    place = folder / "engine"
    remove(place)
    place.mkdir(parents=True)
    engine: Engine
    if name == "duckdb":
        from partition.relational.duckdb_engine import DuckDB

        engine = DuckDB(place, size, threads)
    elif name == "spark-local" or name.startswith("spark://"):
        from partition.relational.spark_engine import Spark

        engine = Spark(name, place, size, threads)
    else:
        message = f"--engine {name}: expected duckdb, spark-local, or the URL of a Spark master: spark://host:7077"
        raise InputError(message, "option.engine")
    try:
        yield engine
    finally:
        engine.close()
        remove(place)


def parse_bytes(text: str) -> int:
    """The number of bytes that a text such as 4GB, 512 MiB or 1.5G stands for.

    Raises:
        InputError: `option.memory`, it stands for none, or for less than 64 MB.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[kmgt]i?)?)b?", text.strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if size < 64 * 10**6:
        raise InputError(f"--memory {text}: expected a size of at least 64MB, such as 4GB", "option.memory")
    return size
