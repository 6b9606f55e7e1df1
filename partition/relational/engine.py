"""What an engine does: it runs Ibis expressions on tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import ibis.expr.types as ir
import pyarrow as pa

BATCH = 1 << 18  # rows that leave an engine at a time


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
