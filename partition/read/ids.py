"""External ids of users and items: whole numbers or text, as the tables of a data set have them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition.read.table_file import TableFile, first_null

# A number as a program writes it: "007" and "1e3" are text. 18 digits always fit int64.
_WHOLE_NUMBER = r"^(0|-?[1-9][0-9]{0,17})$"


@dataclass(frozen=True)
class IdKind:
    """Of what kind the ids in one column of a file are."""

    file: TableFile
    column: str
    numeric: bool  # every id is a whole number, or written as one in a file without types


def are_numbers(kinds: Sequence[IdKind]) -> bool:
    """Whether the ids of several columns are whole numbers together, else text.

    Raises:
        InputError: `ids.mixed`, one column has the type of a number and another has text.
    """
    text = next((kind for kind in kinds if not kind.numeric), None)
    if text is None:
        return True
    for kind in kinds:
        if kind.numeric and not kind.file.is_text:
            message = f"has numbers, but {text.file.path}, column {text.column!r} has text; make both the same"
            raise kind.file.error(message, kind.column, code="ids.mixed")
    return False


@dataclass(frozen=True)
class IdColumn:
    """The ids in one column of a table that fits in memory, such as a catalogue."""

    kind: IdKind
    values: pa.Array  # [rows] int64 or large_string

    @classmethod
    def read(cls, file: TableFile, column: str) -> IdColumn:
        """Reads the column.

        Raises:
            InputError: a null, a type that is neither whole number nor text, a number above 2^63 - 1.
        """
        values = file.read([column], [column])[column].combine_chunks()
        values = plain_ids(file, column, values)
        numeric = pa.types.is_int64(values.type)
        if file.is_text and pc.all(pc.match_substring_regex(values, _WHOLE_NUMBER)).as_py() is not False:
            numeric, values = True, values.cast(pa.int64())
        return cls(IdKind(file, column, numeric), values)

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


def plain_ids(file: TableFile, column: str, values: pa.Array) -> pa.Array:
    """Ids of any type as int64 or large_string.

    Raises:
        InputError: a null, a type that is neither whole number nor text, a number above 2^63 - 1.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.cast(kind.value_type), kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise file.error(f"has type {kind}; ids are whole numbers or text", column, code="ids.type")
    if values.null_count:
        raise file.error("the id is missing", column, first_null(values), code="ids.missing")
    try:
        return values.cast(pa.large_string() if "string" in str(kind) else pa.int64())
    except pa.ArrowInvalid:
        raise file.error("an id is above 2^63 - 1", column, code="ids.range") from None
