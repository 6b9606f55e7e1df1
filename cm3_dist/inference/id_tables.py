"""Reads external ids from tables that the user passes to a command, and finds their global rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cm3_dist.errors import InputError
from cm3_dist.inference.id_map import IdMap, NodeType
from partition.read import id_values
from partition.read.columns import ALIASES, usual_columns
from partition.read.table_file import TableFile, open_table


@dataclass(frozen=True)
class IdColumn:
    """One column of ids in a table."""

    file: TableFile
    column: str
    ids: pa.Array  # [n] of `id_map.type`, in the order of the file
    id_map: IdMap

    def find(self) -> np.ndarray:
        """Global rows [n] int64; -1 for ids that the data does not have."""
        return self.id_map.find_any(self.ids)

    def rows(self) -> np.ndarray:
        """Global rows [n] int64.

        Raises:
            InputError: the data does not have an id; the message names file, column and row.
        """
        rows = self.find()
        self.require_known(rows >= 0)
        return rows

    def require_known(self, known: np.ndarray) -> None:
        """Raises InputError for the first id that is not `known` [n] bool."""
        if not known.all():
            row = int(np.argmin(known))
            message = f"{self.ids[row].as_py()!r} is not among the {self.id_map.node_type}s of the data"
            raise self.error(message, "ids.unknown", row)

    def error(self, message: str, code: str, row: int | None = None) -> InputError:
        """An error that names file, column and row."""
        return self.file.error(message, self.column, row, code=code)


def read_ids(path: Path, id_map: IdMap) -> IdColumn:
    """Reads a table of any format with a single column, or with one id column of a usual name.

    Raises:
        InputError: the file or the column does not exist, there is no row, an id is missing, or it is not a whole
            number of 64 bits where the ids of the data are.
    """
    file = open_table(path)
    return read_column(file, file.names[0] if len(file.names) == 1 else id_column(file, id_map.node_type), id_map)


def read_column(file: TableFile, column: str, id_map: IdMap) -> IdColumn:
    """Reads a given column; raises as `read_ids`."""
    return _read(file, [(column, id_map)])[0]


def read_pairs(path: Path, users: IdMap, items: IdMap) -> tuple[IdColumn, IdColumn]:
    """Reads a table with a user and an item column; raises as `read_ids`."""
    file = open_table(path)
    first, second = _read(file, [(id_column(file, id_map.node_type), id_map) for id_map in (users, items)])
    return first, second


def id_column(file: TableFile, node_type: NodeType) -> str:
    """The column with a usual name for users or items.

    Raises:
        InputError: there is none, or more than one.
    """
    usual = usual_columns(file, node_type)
    if not usual:
        names = ", ".join(ALIASES[node_type])
        message = f"no {node_type} column ({names}); the columns are {', '.join(file.names)}"
        raise file.error(message, code="ids.no-column")
    if len(usual) > 1:
        both = " and ".join(map(repr, usual[:2]))
        message = f"columns {both} could both be the {node_type} column; leave one of them out"
        raise file.error(message, code="ids.ambiguous-column")
    return usual[0]


def _read(file: TableFile, wanted: list[tuple[str, IdMap]]) -> list[IdColumn]:
    table = file.read([column for column, _ in wanted])
    if not table.num_rows:
        raise file.error("has no rows", code="ids.empty")
    return [IdColumn(file, column, _ids(file, column, table[column], id_map), id_map) for column, id_map in wanted]


def _ids(file: TableFile, column: str, values: pa.ChunkedArray, id_map: IdMap) -> pa.Array:
    """The values of a column as ids of `id_map.type`."""
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise file.error("the id is missing", column, row, code="ids.missing")
    if id_values.id_kind(values.type) is None:
        message = f"has type {values.type}; ids are whole numbers, text or UUIDs"
        raise file.error(message, column, code="ids.type")
    found = [id_values.ids(chunk, "text") for chunk in values.chunks]
    wrong = np.concatenate([wrong for _, wrong in found])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise file.error(f"{values[row].as_py()!r} is not a whole number", column, row, code="ids.type")
    texts = pa.concat_arrays([ids for ids, _ in found])
    if pa.types.is_large_string(id_map.type):
        return texts
    numbers = id_values.as_numbers(texts)
    if numbers.null_count:
        row = int(np.argmax(numbers.is_null().to_numpy(zero_copy_only=False)))
        kind = f"the {id_map.node_type} ids of the data are whole numbers"
        message = f"{texts[row].as_py()!r} is text or beyond 64 bits; {kind}"
        raise file.error(message, column, row, code="ids.type")
    return numbers
