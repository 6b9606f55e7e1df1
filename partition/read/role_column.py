"""A column of a log while it is read: its values are converted batch by batch, and rows that do not fit are counted.

Text is tried as one type after the other: a value that does not fit makes the reader begin again with the next one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition.errors import InputError
from partition.read import id_values
from partition.read.table_file import TableFile


class NextTypeError(Exception):
    """The values do not fit the type that was tried; the file is to be read again, with the next one."""


@dataclass
class _Fault:
    """Rows that are refused for one reason."""

    code: str
    what: str  # after the number of rows: "rows have no id"
    row: int  # the first of them
    remedy: str
    count: int = 0


class RoleColumn(ABC):
    """One column of a log while it is read."""

    types: tuple[pa.DataType, ...] = ()  # that text is tried as, one after the other

    def __init__(self, file: TableFile, role: str, column: str) -> None:
        self.file, self.role, self.column = file, role, column
        self.source = file.type_of(column)
        self.kind = id_values.value_type(self.source)
        self.step = 0
        self._reached: list[int] = []  # rows before the first that did not fit, per type
        self._final = not self.types
        self._faults: dict[str, _Fault] = {}

    @property
    @abstractmethod
    def type(self) -> pa.DataType:
        """What the values become."""

    @abstractmethod
    def convert(self, values: pa.Array, first: int) -> pa.Array:
        """The values of a batch that begins with row `first`; null where they are refused.

        Raises:
            NextTypeError: they do not fit the type that is tried.
        """

    def begin(self) -> None:
        """Forgets what earlier reading of the file counted."""
        self._faults = {}

    @property
    def faulty(self) -> bool:
        """True if a row is refused."""
        return bool(self._faults)

    def check(self, rows: int) -> None:
        """Raises InputError if one of all `rows` is refused."""
        for fault in self._faults.values():
            message = f"{fault.count:,} of {rows:,} {fault.what}; first: {self.file.where(fault.row)}{fault.remedy}"
            raise self.file.error(message, self.column, code=fault.code)

    def refuse(self, wrong: np.ndarray, values: pa.Array, first: int, code: str, what: str, remedy: str = "") -> None:
        """Counts the rows that are `wrong` [n] bool; the value of the first is shown unless it is null."""
        if not wrong.any():
            return
        at = int(wrong.argmax())
        shown = values[at].as_py()
        value = "" if shown is None else f", {str(shown)!r}"
        fault = self._faults.setdefault(what, _Fault(code, what, first + at, value + remedy))
        fault.count += int(wrong.sum())

    def wrong_type(self, expected: str, code: str) -> InputError:
        """The error for a type that cannot have this role."""
        return self.file.error(f"has type {self.source}; {expected}", self.column, code=code)

    def cast_text(self, values: pa.Array, first: int, code: str, what: str) -> pa.Array:
        """Text as the type that is tried."""
        kind = self.types[self.step]
        try:
            return values.cast(kind)
        except pa.ArrowInvalid:
            wrong = _failing(values, kind)
        if not self._final:
            self._reached.append(first + int(wrong.argmax()))
            self._next()
            raise NextTypeError
        self.refuse(wrong, values, first, code, what)
        return pc.if_else(pa.array(wrong), None, values).cast(kind)

    def _next(self) -> None:
        """Goes to the next type; after the last, to the one that fitted most rows, which then stays."""
        self.step += 1
        if self.step == len(self.types):
            best = [step for step, rows in enumerate(self._reached) if rows == max(self._reached)]
            self.step, self._final = best[1] if best[:2] == [0, 1] else best[0], True  # float64 takes int64's values


def _failing(values: pa.Array, kind: pa.DataType) -> np.ndarray:
    """[n] bool: the value cannot be cast."""
    try:
        values.cast(kind)
        return np.zeros(len(values), bool)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return np.ones(1, bool)
    half = len(values) // 2
    return np.concatenate([_failing(values.slice(0, half), kind), _failing(values.slice(half), kind)])
