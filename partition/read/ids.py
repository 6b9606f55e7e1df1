"""External ids of users and items: whole numbers or text, as the tables of a data set have them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from partition.read import role_values
from partition.read.table_file import TableFile

_BATCH = 1 << 16


@dataclass(frozen=True)
class IdKind:
    """Of what kind the ids in one column of a file are."""

    file: TableFile
    column: str
    numeric: bool  # every id is a whole number of 64 bits, or written as one in a file without types
    whole: bool  # the same of any size


def are_numbers(kinds: Sequence[IdKind]) -> bool:
    """Whether the ids of several columns are whole numbers together, else text.

    Raises:
        InputError: `ids.mixed`, one column has the type of a number and another has text.
    """
    if all(kind.numeric for kind in kinds):
        return True
    text = next((kind for kind in kinds if not kind.whole), None)
    for kind in kinds:
        if text is not None and kind.numeric and not kind.file.is_text:
            message = f"has numbers, but {text.file.place.name}, column {text.column!r} has text; make both the same"
            raise kind.file.error(message, kind.column, code="ids.mixed")
    return False


@dataclass(frozen=True)
class IdColumn:
    """The ids in one column of a table that fits in memory, such as a catalogue."""

    kind: IdKind
    values: pa.Array  # [rows] int64, or large_string unless all of them are whole numbers

    @classmethod
    def read(cls, file: TableFile, column: str) -> IdColumn:
        """Reads the column.

        Raises:
            InputError: an id is missing, or cannot be one.
        """
        reader = role_values.IdColumn(file, "item", column)
        while True:
            try:
                parts, rows = _converted(file, reader)
                break
            except role_values.NextTypeError:  # begins again with the next type
                continue
        reader.check(rows)
        values = pa.concat_arrays([pa.array([], reader.type), *parts])
        values = values.cast(pa.int64()) if reader.numeric else values
        return cls(IdKind(file, column, reader.numeric, reader.whole), values)

    def of_kind(self, numbers: bool) -> pa.Array:
        """[rows] int64 for `numbers`, else large_string."""
        return self.values.cast(pa.int64() if numbers else pa.large_string())

    def __len__(self) -> int:
        return len(self.values)

    def check_unique(self) -> None:
        """Refuses a table that lists an id twice.

        Raises:
            InputError: `ids.duplicate`, which names the first row in which an id is repeated.
        """
        codes = self.values.dictionary_encode().indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        repeats = order[1:][np.diff(codes[order]) == 0]
        if len(repeats):
            row = int(repeats.min())
            message = f"{self.values[row].as_py()!r} a second time; this table lists an id once"
            raise self.kind.file.error(message, self.kind.column, row, code="ids.duplicate")


def _converted(file: TableFile, reader: role_values.IdColumn) -> tuple[list[pa.Array], int]:
    """The ids in parts, and their number."""
    reader.begin()
    parts: list[pa.Array] = []
    rows = 0
    for batch in file.batches([reader.column], _BATCH):
        parts.append(reader.convert(batch.column(0), rows))
        rows += len(batch)
    return parts, rows
