"""The columns of a log by their role, with the types that an engine reads; rows that do not fit are counted.

| role | values in the file | become |
|---|---|---|
| user, item | see `partition.read.id_values` | int64 or large_string |
| time | integers; floats and decimals; dates and timestamps; text of these | int64; float64; int64 microseconds (UTC) |
| split | 0, 1, 2, or train, validation, test | int8 |
| rating, weight | numbers, and text of numbers | float64; null stays null |
| event | text, integers, booleans | large_string; null stays null |
| any other column | as it is; text without types as whole numbers or numbers if all of it is | |
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition.read import id_values
from partition.read.role_column import NextTypeError, RoleColumn
from partition.read.table_file import TableFile
from partition.transform.dataset import TEST, TRAIN, VALIDATION

__all__ = ["ROLES", "SPLIT_LABELS", "IdColumn", "NextTypeError", "OtherColumn", "RoleColumn", "TimeColumn"]

SPLIT_LABELS = {
    **dict.fromkeys(("0", "0.0", "train", "training"), TRAIN),
    **dict.fromkeys(("1", "1.0", "validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("2", "2.0", "test"), TEST),
}
# A number that reads back as it is written: "007" is text.
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
_TIMES = (pa.int64(), pa.float64(), pa.timestamp("ns"), pa.timestamp("ns", "UTC"))
_OTHERS = (pa.int64(), pa.float64(), pa.large_string())


class IdColumn(RoleColumn):
    """User or item."""

    def __init__(self, file: TableFile, role: str, column: str) -> None:
        super().__init__(file, role, column)
        kind = id_values.id_kind(self.source)
        if kind is None:
            raise self.wrong_type("ids are whole numbers, text or UUIDs", "ids.type")
        self._kind = kind
        self.whole = self.numeric = kind == "number" or file.is_text  # as far as the file was read

    @property
    def type(self) -> pa.DataType:
        """int64 or large_string."""
        return pa.int64() if self._kind == "number" else pa.large_string()

    def convert(self, values: pa.Array, first: int) -> pa.Array:
        """See `RoleColumn.convert`."""
        try:
            found, wrong = id_values.ids(values, self._kind)
        except id_values.BeyondInt64Error:
            self._kind, self.numeric = "text", False
            raise NextTypeError from None
        own = id_values.plain(values)
        self.refuse(_mask(own.is_null()), own, first, "ids.missing", f"rows have no {self.role} id")
        self.refuse(
            wrong,
            own,
            first,
            "ids.type",
            f"{self.role} ids are not whole numbers (floats: below 2^53, of 32 bits below 2^24)",
        )
        if self.file.is_text and self.whole:
            self.whole, fits = id_values.written_as_numbers(found)
            self.numeric = self.numeric and fits
        return found


class TimeColumn(RoleColumn):
    """Times, or dates as microseconds since 1970."""

    def __init__(self, file: TableFile, role: str, column: str) -> None:
        self._text = id_values.is_text(id_values.value_type(file.type_of(column)))
        self.types = _TIMES if self._text else ()
        super().__init__(file, role, column)
        kind = self.kind
        dates = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        if not (self._text or dates or numbers or pa.types.is_null(kind)):
            raise self.wrong_type("times are numbers or dates such as 2026-01-31 12:00:00", "time.type")

    @property
    def dated(self) -> bool:
        """True if the times are dates."""
        kind = self.types[self.step] if self._text else self.kind
        return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))

    @property
    def type(self) -> pa.DataType:
        """int64 or float64."""
        kind = self.types[self.step] if self._text else self.kind
        fraction = pa.types.is_floating(kind) or (pa.types.is_decimal(kind) and kind.scale > 0)
        return pa.float64() if fraction else pa.int64()

    def convert(self, values: pa.Array, first: int) -> pa.Array:
        """See `RoleColumn.convert`."""
        own = id_values.plain(values)
        found = own
        if self._text:
            found = self.cast_text(own, first, "time.type", "values are not times like the others")
        if self.dated:
            found = pc.cast(found, pa.timestamp("us", getattr(found.type, "tz", None)), safe=False)
        self.refuse(_mask(own.is_null()), own, first, "time.missing", "rows have no time")
        if pa.types.is_floating(found.type):
            found = found.cast(pa.float64())
            endless = pc.invert(pc.is_finite(found)).fill_null(False)
            self.refuse(_mask(endless), own, first, "time.missing", "times are not finite")
        try:
            return found.cast(self.type)
        except pa.ArrowInvalid:
            raise self.file.error("a time is beyond 2^63 - 1", self.column, code="time.type") from None


class SplitColumn(RoleColumn):
    """Split labels."""

    @property
    def type(self) -> pa.DataType:
        """int8."""
        return pa.int8()

    def __init__(self, file: TableFile, role: str, column: str) -> None:
        super().__init__(file, role, column)
        kind = self.kind
        known = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)
        if not (known or id_values.is_text(kind)):
            raise self.wrong_type("split labels are 0, 1, 2 or train, validation, test", "split.label")

    def convert(self, values: pa.Array, first: int) -> pa.Array:
        """See `RoleColumn.convert`."""
        own = id_values.plain(values)
        coded = own.dictionary_encode()
        names = coded.dictionary.to_pylist()
        meaning = np.array([SPLIT_LABELS.get(str(name).lower(), -1) for name in names] + [-2], np.int8)
        labels = meaning[coded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
        self.refuse(labels == -2, own, first, "split.label", "rows have no split label")
        remedy = "; expected 0, 1, 2 or train, validation, test"
        self.refuse(labels == -1, own, first, "split.label", "split labels are unknown", remedy)
        return pa.array(labels)


class NumberColumn(RoleColumn):
    """Ratings and weights."""

    @property
    def type(self) -> pa.DataType:
        """float64."""
        return pa.float64()

    def __init__(self, file: TableFile, role: str, column: str) -> None:
        super().__init__(file, role, column)
        kind = self.kind
        numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        self.types = (pa.float64(),)
        self._final = True
        if not (numbers or id_values.is_text(kind) or pa.types.is_null(kind)):
            raise self.wrong_type(f"a {role} is a number", f"{role}.type")

    def convert(self, values: pa.Array, first: int) -> pa.Array:
        """See `RoleColumn.convert`."""
        own = id_values.plain(values)
        if id_values.is_text(own.type):
            return self.cast_text(own, first, f"{self.role}.type", "values are not numbers")
        return pc.cast(own, pa.float64(), safe=False)


class EventColumn(RoleColumn):
    """Names of events."""

    @property
    def type(self) -> pa.DataType:
        """large_string."""
        return pa.large_string()

    def __init__(self, file: TableFile, role: str, column: str) -> None:
        super().__init__(file, role, column)
        kind = self.kind
        known = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
        if not (known or id_values.is_text(kind)):
            raise self.wrong_type("events are text or whole numbers", "event.type")

    def convert(self, values: pa.Array, first: int) -> pa.Array:
        """See `RoleColumn.convert`."""
        return id_values.plain(values).cast(pa.large_string())


class OtherColumn(RoleColumn):
    """A column for an expression of the user."""

    def __init__(self, file: TableFile, role: str, column: str) -> None:
        self.types = _OTHERS if file.is_text else ()
        super().__init__(file, role, column)
        self._final = False  # the last type takes every value

    @property
    def type(self) -> pa.DataType:
        """That of the file; for text without types the one that is tried."""
        if self.types:
            return self.types[self.step]
        return pa.large_string() if id_values.is_text(self.kind) else self.kind

    def convert(self, values: pa.Array, first: int) -> pa.Array:
        """See `RoleColumn.convert`."""
        found = id_values.plain(values)
        if not self.types:
            return found
        pattern = (id_values.WHOLE_NUMBER, _NUMBER, "")[self.step]
        if pattern and pc.all(pc.match_substring_regex(found, pattern)).as_py() is False:
            self.step += 1
            raise NextTypeError
        return self.cast_text(found, first, "", "")


ROLES: dict[str, Callable[[TableFile, str, str], RoleColumn]] = {
    "user": IdColumn,
    "item": IdColumn,
    "time": TimeColumn,
    "split": SplitColumn,
    "rating": NumberColumn,
    "weight": NumberColumn,
    "event": EventColumn,
}


def _mask(values: pa.Array) -> np.ndarray:
    found: np.ndarray = values.to_numpy(zero_copy_only=False)
    return found
