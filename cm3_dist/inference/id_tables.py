"""Reads the users' and items' own ids from files that a person gives to a command, and finds their rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cm3_dist.errors import InputError
from cm3_dist.inference.id_map import Kind, OwnIds
from partition.read.sources import ALIASES, usual_columns
from partition.read.table_file import TableFile, open_table


@dataclass(frozen=True)
class IdFile:
    """One column of ids in a table."""

    file: TableFile
    column: str
    ids: pa.Array  # [n] in the data's own type, as they stand in the file

    def rows(self, own: OwnIds) -> np.ndarray:
        """Global rows [n] int64; -1 for ids that the data does not have."""
        distinct = self.ids.unique()
        return own.find(distinct)[pc.index_in(self.ids, value_set=distinct).to_numpy()]

    def unknown(self, row: int, kind: Kind, hint: str = "") -> InputError:
        """The error for an id that is not among the data's."""
        return self.file.error(
            f"{self.ids[row].as_py()!r} is not among the {kind}s of the data{hint}", self.column, row
        )


def read_ids(path: Path, own: OwnIds) -> IdFile:
    """The ids of a table (Parquet, Arrow, CSV, TSV) with one column, or with one of a usual name.

    Raises:
        InputError: no such file, no such column, no row, a missing id, or text where the data has whole numbers.
    """
    file = open_table(path)
    return read_column(file, file.names[0] if len(file.names) == 1 else id_column(file, own.kind), own)


def id_column(file: TableFile, kind: Kind) -> str:
    """The column with a usual name for users or items.

    Raises:
        InputError: there is none, or more than one.
    """
    usual = usual_columns(file, kind)
    if not usual:
        raise file.error(f"no {kind} column ({', '.join(ALIASES[kind])}); the columns are {', '.join(file.names)}")
    if len(usual) > 1:
        both = " and ".join(map(repr, usual[:2]))
        raise file.error(f"columns {both} could both be the {kind} column; leave one of them out")
    return usual[0]


def read_column(file: TableFile, column: str, own: OwnIds) -> IdFile:
    """The same for a column that is known."""
    return _read(file, [(column, own)])[0]


def read_pairs(path: Path, users: OwnIds, items: OwnIds) -> tuple[IdFile, IdFile]:
    """The same for a table with a user and an item column."""
    file = open_table(path)
    first, second = _read(file, [(id_column(file, own.kind), own) for own in (users, items)])
    return first, second


def _read(file: TableFile, wanted: list[tuple[str, OwnIds]]) -> list[IdFile]:
    names = [column for column, _ in wanted]
    table, found = file.read(names, names), []
    if not table.num_rows:
        raise file.error("has no rows")
    for column, own in wanted:
        values = table[column].combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.null_count:
            raise file.error("the id is missing", column, int(np.flatnonzero(values.is_null().to_numpy(False))[0]))
        if not any(check(values.type) for check in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)):
            raise file.error(f"has type {values.type}; ids are whole numbers or text", column)
        found.append(IdFile(file, column, own.cast(values, file, column)))
    return found
