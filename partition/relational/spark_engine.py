"""Spark, for tables that outgrow one machine; its tables are Parquet files in the work folder.

Every machine of a cluster therefore has to reach that folder under the same path.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.common.exceptions import IbisError
from sqlglot.errors import SqlglotError

from partition.errors import InputError, one_line
from partition.relational.engine import BATCH, Engine
from partition.threads import count

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PARTITIONS_PER_THREAD = 2


class Spark(Engine):
    """A Spark session.

    Args:
        name: `spark-local` or the URL of a master.
        folder: for the tables it keeps, and what a local one spills.
        memory: bytes of the driver, which is all there is with `spark-local`.
        threads: number with `spark-local`; by default one per core.

    Raises:
        InputError: `option.engine`, without pyspark or Java, or the master does not answer.
    """

    dialect = "spark"

    def __init__(self, name: str, folder: Path, memory: int, threads: int | None) -> None:
        for software, there in (("pyspark", importlib.util.find_spec("pyspark") is not None), ("Java", _has_java())):
            if not there:
                message = f"--engine {name}: {software} is not installed; run `make spark`, and install Java 17"
                raise InputError(message, "option.engine")
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession

        self.errors = (PySparkException, IbisError, SqlglotError)
        self._folder, self._number = folder, 0
        own = SparkSession.getActiveSession()
        self._session = own or _new_session(name, folder, memory, count(threads))
        self._ends = own is None  # a session that was there before stays
        self._database = ibis.pyspark.connect(self._session)

    def parquet(self, files: Sequence[str]) -> ir.Table:
        """See `Engine.parquet`."""
        tables = [self._database.read_parquet(_escaped(file)) for file in files]
        return ibis.union(*tables) if len(tables) > 1 else tables[0]

    def keep(self, table: ir.Table) -> ir.Table:
        """See `Engine.keep`."""
        return self._database.read_parquet(_escaped(str(self._written(table))))

    def drop(self, table: ir.Table) -> None:
        """See `Engine.drop`; its files go with the folder."""

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """See `Engine.batches`."""
        folder = self._written(table)
        for path in sorted(folder.glob("part-*.parquet")):  # an ordered table is written in ranges, in their order
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(BATCH)
        shutil.rmtree(folder)

    def close(self) -> None:
        """See `Engine.close`."""
        if self._ends:
            self._session.stop()

    def _written(self, table: ir.Table) -> Path:
        self._number += 1
        folder = self._folder / f"kept_{self._number}"
        self._database.to_parquet(table, str(folder), mode="overwrite")
        return folder


def _new_session(name: str, folder: Path, memory: int, threads: int) -> SparkSession:
    from pyspark.sql import SparkSession

    local = name == "spark-local"
    settings = {
        "spark.app.name": "partition build",
        "spark.master": f"local[{threads}]" if local else name,
        "spark.driver.memory": f"{memory // 2**20}m",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.sql.session.timeZone": "UTC",
    }
    if local:
        settings["spark.local.dir"] = str(folder)
        settings["spark.sql.shuffle.partitions"] = str(_PARTITIONS_PER_THREAD * threads)
    builder = SparkSession.builder
    for key, value in settings.items():
        builder = builder.config(key, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # of the Java process that does not start, or of the master that does not answer
        raise InputError(f"--engine {name}: Spark does not start: {one_line(error)[:300]}", "option.engine") from None


def _has_java() -> bool:
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java") is not None or (home is not None and (Path(home) / "bin" / "java").exists())


def _escaped(path: str) -> str:
    """A path in which no character is a pattern."""
    return re.sub(r"([][{}*?\\])", r"\\\1", path)
