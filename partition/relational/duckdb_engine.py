"""DuckDB, inside this process: all cores, and the disk for what exceeds its memory."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.common.exceptions import IbisError
from sqlglot.errors import SqlglotError

from partition.relational.engine import BATCH, Engine


class DuckDB(Engine):
    """A database in memory, whose tables go to the disk beyond the limit.

    Args:
        folder: for what does not fit in memory.
        memory: bytes.
        threads: number; by default one per core.
    """

    dialect = "duckdb"
    errors = (duckdb.Error, IbisError, SqlglotError)

    def __init__(self, folder: Path, memory: int, threads: int | None) -> None:
        options = {"threads": threads} if threads else {}
        self._database = ibis.duckdb.connect(
            memory_limit=f"{memory // 10**6}MB",
            temp_directory=str(folder),
            preserve_insertion_order=False,
            arrow_large_buffer_size=True,
            **options,
        )
        self._number = 0

    def parquet(self, files: Sequence[str]) -> ir.Table:
        """See `Engine.parquet`."""
        # Else a folder named key=value anywhere above a file would become a column, in place of one of that name.
        return self._database.read_parquet([glob.escape(file) for file in files], hive_partitioning=False)

    def keep(self, table: ir.Table) -> ir.Table:
        """See `Engine.keep`."""
        self._number += 1
        return self._database.create_table(f"kept_{self._number}", table, temp=True)

    def drop(self, table: ir.Table) -> None:
        """See `Engine.drop`."""
        self._database.raw_sql(f"DROP TABLE {table.get_name()}")

    def batches(self, table: ir.Table) -> Iterator[pa.RecordBatch]:
        """See `Engine.batches`."""
        yield from table.to_pyarrow_batches(chunk_size=BATCH)

    def close(self) -> None:
        """See `Engine.close`."""
        self._database.disconnect()
