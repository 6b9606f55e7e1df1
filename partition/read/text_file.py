"""Text files in chunks of whole records: quotes checked, lines counted, each chunk parsed by Arrow.

A tab-separated file has no quoting: a `"` is a character. Others follow RFC 4180: a field that begins with a quote ends
at the next single one, may contain line breaks of any number, and writes a quote as two. Arrow reads neither a record
that is longer than its block nor the line of an error inside quotes, and does not refuse stray quotes; so the cutting
and checking is done here.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

CHUNK_BYTES = 1 << 24
TAB = "\t"
_LONGEST_RECORD = 1 << 30  # bytes
_QUOTE, _LF, _CR = b'"\n\r'
_IN_QUOTES = re.compile(r'"[^"]*"')
_BOM = b"\xef\xbb\xbf"
# Between two stray quotes, of which one begins a field and the other ends one, lie whole rows. RFC 4180 cannot tell
# them from a text of many lines; but that all of so many lines have the separators of a row is no accident.
_SWALLOWED_LINES, _SWALLOWED_SEPARATORS = 8, 16


class TextError(ValueError):
    """A file that breaks the rules of its format; the message names the line."""


@dataclass(frozen=True)
class Chunk:
    """Whole records of a text file, without the header."""

    data: bytes
    first_line: int  # the first line of the file is line 1
    separator: str

    @property
    def quoted(self) -> bool:
        """False where a `"` is a character."""
        return self.separator != TAB

    def row_lines(self) -> np.ndarray:
        """[rows] int64: the line in which each record begins. Blank lines are no records."""
        ends, outside = _line_ends(self.data, self.quoted)
        starts = np.concatenate([[0], ends[outside] + 1])
        starts = starts[starts < len(self.data)]
        text = np.frombuffer(self.data, np.uint8)
        starts = starts[(text[starts] != _LF) & (text[starts] != _CR)]
        return self.first_line + np.searchsorted(ends, starts)


def separator_of(header: bytes) -> str:
    """The separator of a file with this first line: a tab if it has one, else a comma, else ; or |."""
    return next((mark for mark in "\t,;|" if mark.encode() in header), ",")


def chunks(stream: pa.NativeFile, separator: str = TAB, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cuts a stream into chunks of whole records, about `size` bytes each; the first begins with the header.

    Raises:
        TextError: a stray quote, one that is not closed, a record above 1 GiB, or UTF-16.
    """
    data, line, begin, quoted, width = b"", 1, True, separator != TAB, 1
    while True:
        block = stream.read(max(size, len(data)))
        data += block
        if begin:
            if data.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise TextError("is UTF-16; save it as UTF-8")
            data, begin = data.removeprefix(_BOM), False
        end = len(data) if not block else _last_end(data, quoted)
        if line == 1:
            width = data.lstrip(b"\r\n").partition(b"\n")[0].count(separator.encode()) + 1
        if quoted and b'"' in data:
            _check_quotes(data[:end] if end else data, line, separator, width, open_end=not end)
        if end:
            chunk = Chunk(data[:end], line, separator)
            line += len(_line_ends(chunk.data, False)[0])
            data = data[end:]
            yield chunk
        elif len(data) > _LONGEST_RECORD:
            raise TextError(f"line {line}: a record of more than 1 GiB begins here")
        if not block:
            return


def split_header(chunk: Chunk) -> tuple[list[str], Chunk]:
    """The column names in the first line that is not blank, and the rest of the chunk.

    Raises:
        TextError: there is no line.
    """
    blank = re.match(rb"[\r\n]*", chunk.data)
    assert blank is not None
    start = blank.end()
    ends, outside = _line_ends(chunk.data, chunk.quoted)
    later = ends[outside & (ends >= start)]
    end = int(later[0]) + 1 if len(later) else len(chunk.data)
    header = chunk.data[start:end]
    if not header:
        raise TextError("is empty; the first line must have the names of the columns")
    try:
        text = header.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise TextError("line 1: is not UTF-8") from None
    rest = Chunk(chunk.data[end:], chunk.first_line + int(np.searchsorted(ends, end)), chunk.separator)
    if chunk.quoted:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=chunk.separator)), rest
    names = text.split(TAB)
    if all(map(_IN_QUOTES.fullmatch, names)):  # Arrow writes a header so, also where values are without quotes
        line = rest.data.lstrip(b"\r\n").split(b"\n", 1)[0].decode(errors="replace").rstrip("\r")
        if any(map(_IN_QUOTES.fullmatch, line.split(TAB))):
            raise TextError("values are in quotes, but a tab-separated file has no quoting; write it without quotes")
        names = [name[1:-1] for name in names]
    return names, rest


def parse(chunk: Chunk, names: Sequence[str], columns: Sequence[str], *, as_bytes: bool = False) -> pa.Table:
    """Some columns of a chunk as large_string, as they are written; an empty value is null.

    Raises:
        TextError: a record with another number of fields, or text that is not UTF-8, unless it is read `as_bytes`:
            as large_binary.
    """
    breaks = chunk.quoted and b'"' in chunk.data
    kind = pa.large_binary() if as_bytes else pa.large_string()
    try:
        return arrow_csv.read_csv(
            pa.BufferReader(chunk.data),
            arrow_csv.ReadOptions(
                column_names=[str(number) for number in range(len(names))],
                block_size=len(chunk.data) + 1 if breaks else 1 << 22,
            ),
            arrow_csv.ParseOptions(
                delimiter=chunk.separator,
                quote_char='"' if chunk.quoted else False,
                double_quote=chunk.quoted,
                newlines_in_values=breaks,
            ),
            arrow_csv.ConvertOptions(
                include_columns=[str(names.index(name)) for name in columns],
                column_types={str(names.index(name)): kind for name in columns},
                null_values=[""],
                strings_can_be_null=True,
            ),
        ).rename_columns(list(columns))
    except pa.ArrowInvalid as error:
        _locate(chunk, names)
        raise TextError(str(error)) from None


def _line_ends(data: bytes, quoted: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the last byte of every line end; and whether it is outside of quotes, bool."""
    text = np.frombuffer(data, np.uint8)
    at_end = text == _LF
    if b"\r" in data:
        lone = text == _CR
        lone[:-1] &= text[1:] != _LF
        at_end |= lone
    ends = np.flatnonzero(at_end)
    if not quoted or b'"' not in data:
        return ends, np.ones(len(ends), bool)
    return ends, np.searchsorted(np.flatnonzero(text == _QUOTE), ends) % 2 == 0


def _last_end(data: bytes, quoted: bool) -> int:
    """Number of bytes up to the last end of a record; 0 if there is none."""
    if not quoted or b'"' not in data:
        found = data.rfind(b"\n") + 1
        return found or data.rfind(b"\r", 0, -1) + 1  # a final \r may be half of \r\n
    ends, outside = _line_ends(data, True)
    ends = ends[outside]
    if len(ends) and ends[-1] == len(data) - 1 and data[-1] == _CR:
        ends = ends[:-1]
    return int(ends[-1]) + 1 if len(ends) else 0


def _check_quotes(data: bytes, first_line: int, separator: str, width: int, *, open_end: bool) -> None:
    """Refuses stray and unbalanced quotes in records; with `open_end` the last record is not complete yet."""
    text = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(text == _QUOTE)
    opening, closing = quotes[::2], quotes[1::2]
    edges = np.zeros(256, bool)
    edges[[_LF, _CR, ord(separator)]] = True
    # An opening quote follows a separator or a line end; or the closing one right before it: two are one character.
    before = np.where(opening > 0, text[opening - 1], _LF)
    stray = ~edges[before]
    stray[1:] &= opening[1:] - 1 != closing[: len(opening) - 1]
    # A closing quote precedes a separator, a line end, the end of the file, or the other half of a quote character.
    inside = closing + 1 < len(text)
    after = np.where(inside, text[np.minimum(closing + 1, len(text) - 1)], _LF)
    broken = ~edges[after] & (after != _QUOTE)

    def line(position: int) -> int:
        return first_line + _lines_before(data, position)

    faults = []
    if stray.any():
        faults.append((int(opening[int(stray.argmax())]), "a quote inside a field without quotes"))
    if broken.any():
        at = int(broken.argmax())
        message = f"a quote opens here, and the one that closes it, in line {line(closing[at])}, is followed by text"
        faults.append((int(opening[at]), message))
    if not faults and not open_end and len(opening) > len(closing):
        faults.append((int(opening[-1]), "a quote opens here and is never closed"))
    if not faults and (pair := _swallowing(data, opening, closing, separator, width)) is not None:
        message = f"a quote opens here and closes in line {line(closing[pair])}, and all lines between are rows"
        faults.append((int(opening[pair]), message))
    if faults:
        position, message = min(faults)
        raise TextError(
            f"line {line(position)}: {message}; quote the field and write the quote twice, or separate by tabs"
        )


def _swallowing(data: bytes, opening: np.ndarray, closing: np.ndarray, separator: str, width: int) -> int | None:
    """The first quoted text whose lines all have the separators of a row, if it has many; `width` fields are a row."""
    ends = _line_ends(data, False)[0]
    opening = opening[: len(closing)]
    breaks = np.searchsorted(ends, closing) - np.searchsorted(ends, opening)
    wanted = max(_SWALLOWED_LINES, -(-_SWALLOWED_SEPARATORS // max(width - 1, 1)))
    for at in np.flatnonzero(breaks >= wanted) if width > 1 else ():
        begin = data.rfind(b"\n", 0, int(opening[at])) + 1
        end = data.find(b"\n", int(closing[at]))
        lines = data[begin : end if end >= 0 else len(data)].split(b"\n")
        if all(line.count(separator.encode()) == width - 1 for line in lines):
            return int(at)
    return None


def _lines_before(data: bytes, position: int) -> int:
    return len(_line_ends(data[: int(position)], False)[0])


def _locate(chunk: Chunk, names: Sequence[str]) -> None:
    """Raises the error of the first record that is wrong."""
    csv.field_size_limit(sys.maxsize)
    text = io.StringIO(chunk.data.decode(errors="surrogateescape"), newline="")
    lines = chunk.row_lines()
    if chunk.quoted:
        records = (record for record in csv.reader(text, delimiter=chunk.separator) if record)
    else:
        records = (line.rstrip("\r\n").split(TAB) for line in text if line.rstrip("\r\n"))
    for line, record in zip(lines, records, strict=False):
        if len(record) != len(names):
            raise TextError(f"line {line}: {len(record)} fields; the header has {len(names)}")
        for name, value in zip(names, record, strict=True):
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise TextError(f"line {line}, column {name!r}: is not UTF-8")
