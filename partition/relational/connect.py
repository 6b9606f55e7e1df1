"""Starts the engine of a command: DuckDB in this process, or Spark.

What an engine keeps and spills lies in a folder of the work folder, and goes when the engine is closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from partition.errors import InputError
from partition.files import remove
from partition.relational.duckdb_engine import DuckDB
from partition.relational.engine import Engine
from partition.relational.spark_engine import Spark

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


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
        engine = DuckDB(place, size, threads)
    elif name == "spark-local" or name.startswith("spark://"):
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
