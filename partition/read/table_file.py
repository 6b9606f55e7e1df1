"""One table file of any format: its columns, its rows in batches, and errors that name a column and a row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from partition.errors import InputError, one_line

TEXT = frozenset({".csv", ".tsv", ".inter", ".txt"})
PARQUET = frozenset({".parquet", ".pq"})
ARROW = frozenset({".arrow", ".feather", ".ipc"})
SUFFIXES = TEXT | PARQUET | ARROW
# Ids in Arrow: each distinct string once, and one index per row.
ENCODED = pa.dictionary(pa.int32(), pa.string())

_HEADER_BYTES = 1 << 16
_TEXT_BLOCK = 1 << 24
# ArrowInvalid is a ValueError, ArrowIOError an OSError; the rest derives from ArrowException.
_UNREADABLE = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class TableFile:
    """A table on disk. Text has a header line, and is separated by tabs if the header contains one, else by commas."""

    path: Path
    names: tuple[str, ...]
    schema: pa.Schema | None  # None for text, which has no types of its own
    separator: str = ","

    @property
    def is_text(self) -> bool:
        """True for formats without types, in which every value is text."""
        return self.schema is None

    @property
    def rows(self) -> int | None:
        """Number of rows, where it is known without reading the file (Parquet), else None.

        Raises:
            InputError: the file is torn or otherwise unreadable.
        """
        if self.path.suffix not in PARQUET:
            return None
        with self._reading():
            return int(pq.read_metadata(self.path).num_rows)

    def error(self, message: str, column: str | None = None, row: int | None = None, *, code: str = "") -> InputError:
        """An error that names the file, the column and the row (the first row of data is row 0)."""
        where = [f"column {column!r}"] if column is not None else []
        if row is not None:
            where.append(f"row {row} (line {row + 2})" if self.is_text else f"row {row}")
        return InputError(": ".join(filter(None, [str(self.path), ", ".join(where), message])), code)

    def read(self, columns: Sequence[str], encoded: Sequence[str] = ()) -> pa.Table:
        """Reads some columns.

        Args:
            columns: some of `names`.
            encoded: those of them whose strings are returned as `ENCODED`. In text files their values stay as they are
                written ("007" stays "007"), and an empty value is null.

        Raises:
            InputError: the file is torn or otherwise unreadable, or a name occurs twice.
        """
        self._check_names(columns)
        with self._reading():
            if self.schema is None:
                return self._read_text(columns, encoded)
            if self.path.suffix in PARQUET:
                with pq.ParquetFile(self.path, read_dictionary=self._strings(encoded)) as file:
                    return file.read(columns=list(columns))
            with _open_arrow(self.path) as reader:
                return reader.read_all().select(list(columns))

    def batches(self, columns: Sequence[str], rows: int, encoded: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Reads some columns, about `rows` rows at a time; text files 16 MiB at a time.

        The other arguments are those of `read`. Of text files all columns have to be `encoded`: the type of others
        would be guessed from the first batch.

        Raises:
            InputError: the file is torn or otherwise unreadable, or a name occurs twice.
        """
        self._check_names(columns)
        with self._reading():
            if self.schema is None:
                yield from self._text_batches(columns, encoded)
                return
            if self.path.suffix in PARQUET:
                with pq.ParquetFile(self.path, read_dictionary=self._strings(encoded)) as file:
                    yield from file.iter_batches(rows, columns=list(columns))
                return
            with _open_arrow(self.path) as reader:
                for number in range(getattr(reader, "num_record_batches", 0)):
                    batch = reader.get_batch(number).select(list(columns))
                    for begin in range(0, batch.num_rows, rows):
                        yield batch.slice(begin, rows)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as error:
            message = f"cannot be read: {_in_words(error, self.names)}"
            raise self.error(message, code="file.unreadable") from None

    def _check_names(self, columns: Sequence[str]) -> None:
        for name in columns:
            if self.names.count(name) > 1:
                raise self.error("the file has two columns of this name", name, code="column.duplicate")

    def _strings(self, columns: Sequence[str]) -> list[str]:
        assert self.schema is not None
        return [name for name in columns if _is_string(self.schema.field(name).type)]

    def _text_batches(self, columns: Sequence[str], encoded: Sequence[str]) -> Iterator[pa.RecordBatch]:
        try:
            yield from csv.open_csv(self.path, **self._text_options(columns, encoded))
        except pa.ArrowInvalid:
            for _ in csv.open_csv(self.path, **self._text_options(columns, encoded, threads=False)):
                pass  # fails again, but without threads the error names the line
            raise

    def _text_options(self, columns: Sequence[str], encoded: Sequence[str], threads: bool = True) -> dict[str, Any]:
        return {
            "read_options": csv.ReadOptions(use_threads=threads, block_size=_TEXT_BLOCK),
            "parse_options": csv.ParseOptions(delimiter=self.separator),
            "convert_options": csv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(encoded, ENCODED),
                null_values=[""],
                strings_can_be_null=True,
            ),
        }

    def _read_text(self, columns: Sequence[str], encoded: Sequence[str]) -> pa.Table:
        try:
            return csv.read_csv(self.path, **self._text_options(columns, encoded))
        except pa.ArrowInvalid:  # fails again, but without threads the error names the line
            return csv.read_csv(self.path, **self._text_options(columns, encoded, threads=False))


def open_table(path: Path) -> TableFile:
    """Reads the header or schema of a file.

    Raises:
        InputError: no such file, an unknown extension, or a file that is torn, empty or of another format.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file", "file.missing")
    if path.suffix not in SUFFIXES:
        message = f"{path}: unknown extension; tables are read from {', '.join(sorted(SUFFIXES))}"
        raise InputError(message, "table.format")
    try:
        if path.suffix in TEXT:
            return _open_text(path)
        if path.suffix in PARQUET:
            schema = pq.read_schema(path)
        else:
            with _open_arrow(path) as reader:
                schema = reader.schema
    except _UNREADABLE as error:
        message = f"{path}: cannot be read as {path.suffix[1:]}: {_in_words(error)}"
        raise InputError(message, "file.unreadable") from None
    return TableFile(path, tuple(schema.names), schema)


def _open_text(path: Path) -> TableFile:
    with path.open("rb") as handle:
        header = handle.readline(_HEADER_BYTES)
    separator = "\t" if b"\t" in header else ","
    names = csv.open_csv(pa.py_buffer(header), parse_options=csv.ParseOptions(delimiter=separator)).schema.names
    return TableFile(path, tuple(names), None, separator)


def _open_arrow(path: Path) -> ipc.RecordBatchFileReader:
    return ipc.open_file(pa.memory_map(str(path)))


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def first_null(values: pa.Array) -> int:
    """Index of the first null."""
    return int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])


def _in_words(error: Exception, names: Sequence[str] = ()) -> str:
    """Arrow's message in one line, with the line of the file and the name of the column instead of their numbers."""
    text = re.sub(r"\bRow #(\d+)", r"line \1", one_line(error))
    return re.sub(r"\bCSV column #(\d+)", lambda match: _named(int(match[1]), names), text)[:300]


def _named(number: int, names: Sequence[str]) -> str:
    return f"column {names[number]!r}" if number < len(names) else f"column {number + 1}"
