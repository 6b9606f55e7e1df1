"""One table file of any format and place: its columns, its rows in batches, and errors that name a column and a row."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from partition.errors import InputError, one_line
from partition.read import json_lines, text_file
from partition.read.places import Key, Place, place_of
from partition.read.text_file import Chunk, TextError

Format = Literal["text", "json", "parquet", "arrow", "stream"]

TEXT = frozenset({".csv", ".tsv", ".inter", ".txt"})
JSON = frozenset({".jsonl", ".ndjson", ".json"})
PARQUET = frozenset({".parquet", ".pq"})
ARROW = frozenset({".arrow", ".feather", ".ipc"})
SUFFIXES = TEXT | JSON | PARQUET | ARROW
# In a folder these may be notes and settings as well as tables: they are read only if they are named.
NAMED_ONLY = frozenset({".txt", ".json"})

_HEADER_BYTES = 1 << 16
_ARROW_FILE = b"ARROW1"


@dataclass(frozen=True)
class TableFile:
    """A table. The keys of Hive folders above the file are its last columns."""

    place: Place
    format: Format
    names: tuple[str, ...]
    schema: pa.Schema | None  # None for text, which has no types of its own
    separator: str = text_file.TAB  # of text
    keys: tuple[tuple[str, Key], ...] = ()  # of Hive folders, as far as the file has no column of that name

    @property
    def path(self) -> Path:
        """The file on a local disk; elsewhere only a name, which cannot be opened."""
        return Path(self.place.path if self.place.is_local else self.place.name)

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
        if self.format != "parquet":
            return None
        with self._reading(), self.place.open_file() as file:
            return int(pq.read_metadata(file).num_rows)

    def error(self, message: str, column: str | None = None, row: int | None = None, *, code: str = "") -> InputError:
        """An error that names the file, the column and the row (the first row of data is row 0)."""
        where = [f"column {column!r}"] if column is not None else []
        if row is not None:
            where.append(self.where(row))
        return InputError(": ".join(filter(None, [self.place.name, ", ".join(where), message])), code)

    def where(self, row: int) -> str:
        """A row in words: "row 16", and for files of lines also the line: "row 16 (line 18)"."""
        if self.format not in ("text", "json"):
            return f"row {row}"
        begin = 0
        for chunk in self._chunks():
            lines = chunk.row_lines()
            if row < begin + len(lines):
                return f"row {row} (line {lines[row - begin]})"
            begin += len(lines)
        return f"row {row}"

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Reads some columns; those of text files as large_string, as they are written ("007" stays "007").

        Args:
            columns: some of `names`. In text files an empty value is null.

        Raises:
            InputError: the file is torn or otherwise unreadable, or a name occurs twice.
        """
        batches = list(self.batches(columns, 1 << 17))
        return pa.Table.from_batches(batches, batches[0].schema if batches else self._schema(columns))

    def batches(self, columns: Sequence[str], rows: int, *, as_bytes: bool = False) -> Iterator[pa.RecordBatch]:
        """Reads some columns, at most `rows` rows at a time; those of text files as in `read`.

        Args:
            columns: some of `names`.
            rows: of a batch.
            as_bytes: of a text file: large_binary instead of large_string, so that text that is not UTF-8 is no error.

        Raises:
            InputError: the file is torn or otherwise unreadable, or a name occurs twice.
        """
        for name in columns:
            if self.names.count(name) > 1:
                raise self.error("the file has two columns of this name", name, code="column.duplicate")
        keys = dict(self.keys)
        stored = [name for name in columns if name not in keys] or [*self._own_names[:1]]  # for the number of rows
        with self._reading():
            for batch in self._stored(stored, rows, as_bytes):
                for begin in range(0, batch.num_rows, rows):
                    part = batch.slice(begin, rows)
                    arrays = [
                        pa.repeat(pa.scalar(keys[name], self.type_of(name)), len(part))
                        if name in keys
                        else part.column(name)
                        for name in columns
                    ]
                    yield pa.record_batch(arrays, names=list(columns))

    @property
    def _own_names(self) -> tuple[str, ...]:
        """The columns that the file itself has."""
        return self.names[: len(self.names) - len(self.keys)]

    def _stored(self, columns: Sequence[str], rows: int, as_bytes: bool) -> Iterable[pa.RecordBatch]:
        if self.format == "text":
            for chunk in self._chunks():
                yield from text_file.parse(chunk, self._own_names, columns, as_bytes=as_bytes).to_batches()
        elif self.format == "json":
            assert self.schema is not None
            for chunk in self._chunks():
                yield from json_lines.parse(chunk, self.schema, columns).to_batches()
        elif self.format == "parquet":
            with self.place.open_file() as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(rows, columns=list(columns)):
                    yield batch.select(list(columns))
        else:
            yield from self._arrow_batches(columns)

    def _arrow_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if self.format == "stream":
            with self.place.open_stream() as stream, ipc.open_stream(stream) as reader:
                for batch in reader:
                    yield batch.select(list(columns))
            return
        options = ipc.IpcReadOptions(included_fields=sorted(self.names.index(name) for name in columns))
        with self._arrow_source() as source, ipc.open_file(source, options=options) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number).select(list(columns))

    def _arrow_source(self) -> pa.NativeFile:
        return pa.memory_map(self.place.path) if self.place.is_local else self.place.open_file()

    def _chunks(self) -> Iterator[Chunk]:
        """The rows of a file of lines, without the header."""
        with self._reading(), closing(self.place.open_stream()) as stream:
            parts = text_file.chunks(stream, self.separator)
            if self.format == "text":
                parts = itertools.chain([text_file.split_header(next(parts))[1]], parts)
            yield from (chunk for chunk in parts if chunk.data.strip(b"\r\n"))

    def _schema(self, columns: Sequence[str]) -> pa.Schema:
        return pa.schema([(name, self.type_of(name)) for name in columns])

    def type_of(self, name: str) -> pa.DataType:
        """The type of the values that `read` and `batches` return."""
        return pa.large_string() if self.schema is None else self.schema.field(name).type

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # damaged bytes make Arrow raise nearly anything (see `partition.errors.reading`)
            message = one_line(error) if isinstance(error, TextError) else f"cannot be read: {one_line(error)}"
            raise self.error(message[:300], code="file.unreadable") from None


def open_table(source: str | Path | Place) -> TableFile:
    """Reads the header or schema of a file; of JSON lines the whole file, whose lines may differ.

    Raises:
        InputError: no such file, an unknown extension, or a file that is torn, empty or of another format.
    """
    place = place_of(source)
    suffix, compression = place.suffixes
    lines = suffix in TEXT | JSON
    if suffix not in SUFFIXES or (compression and not lines):
        message = f"{place.name}: unknown extension; tables are read from {', '.join(sorted(SUFFIXES))}"
        raise InputError(message + "; those of text and JSON also with .gz, .zst, .bz2", "table.format")
    try:
        table = _open(place, suffix)
    except FileNotFoundError:
        raise InputError(f"{place.name}: no such file", "file.missing") from None
    except TextError as error:
        raise InputError(f"{place.name}: {error}", "file.unreadable") from None
    except Exception as error:
        message = f"{place.name}: cannot be read as {suffix[1:]}: {one_line(error)[:300]}"
        raise InputError(message, "file.unreadable") from None
    return table


def is_table(place: Place, named: bool = False) -> bool:
    """True for a file that is read as a table: by its suffix, some only if the user names it."""
    suffix, compression = place.suffixes
    return suffix in (TEXT | JSON if compression else SUFFIXES) and (named or suffix not in NAMED_ONLY)


def _open(place: Place, suffix: str) -> TableFile:
    if suffix in TEXT:
        with place.open_stream() as stream:
            header = stream.read(_HEADER_BYTES).lstrip(b"\r\n").partition(b"\n")[0]
        separator = text_file.separator_of(header)
        with place.open_stream() as stream:
            parts = text_file.chunks(stream, separator, _HEADER_BYTES)
            names, _ = text_file.split_header(next(parts, Chunk(b"", 1, separator)))
        keys = tuple((name, value if value is None else str(value)) for name, value in _new_keys(place, names))
        return TableFile(place, "text", (*names, *(name for name, _ in keys)), None, separator, keys)
    if suffix in JSON:
        return _with_keys(place, "json", _json_schema(place, place.stamp()))
    if suffix in PARQUET:
        with place.open_file() as file:
            return _with_keys(place, "parquet", pq.read_schema(file))
    with place.open_file() as file:
        if file.read(len(_ARROW_FILE)) == _ARROW_FILE:
            file.seek(0)
            with ipc.open_file(file) as reader:
                return _with_keys(place, "arrow", reader.schema)
    with place.open_stream() as stream, ipc.open_stream(stream) as reader:
        return _with_keys(place, "stream", reader.schema)


@lru_cache(maxsize=64)  # the whole file is read for it
def _json_schema(place: Place, stamp: tuple[str, int, int, int]) -> pa.Schema:
    with closing(place.open_stream()) as stream:
        return json_lines.schema_of(text_file.chunks(stream))


def _with_keys(place: Place, format: Format, schema: pa.Schema) -> TableFile:
    keys = _new_keys(place, schema.names)
    for name, value in keys:
        schema = schema.append(pa.field(name, pa.int64() if isinstance(value, int) else pa.string()))
    return TableFile(place, format, tuple(schema.names), schema, keys=keys)


def _new_keys(place: Place, names: Sequence[str]) -> tuple[tuple[str, Key], ...]:
    """The keys of Hive folders that are not columns of the file as well."""
    return tuple((name, value) for name, value in place.keys if name not in names)
