"""JSON lines: one record per line, read in chunks of whole lines with one schema for the whole file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.json as arrow_json

from partition.errors import one_line
from partition.read.text_file import Chunk, TextError


def schema_of(parts: Iterable[Chunk]) -> pa.Schema:
    """The columns of a file, each with a type that holds all of its values.

    Every line is looked at: a field may first occur in the last one. Text that looks like a date stays text.

    Raises:
        TextError: a line that is not a record, or a field that is text here and a number there.
    """
    found = pa.schema([])
    for chunk in parts:
        schema = _parse(chunk, arrow_json.ParseOptions()).schema
        fields = [field.with_type(pa.string()) if pa.types.is_timestamp(field.type) else field for field in schema]
        try:
            found = pa.unify_schemas([found, pa.schema(fields)], promote_options="permissive")
        except pa.ArrowException as error:
            raise TextError(f"lines {chunk.first_line} and later: {one_line(error)}") from None
    return found


def parse(chunk: Chunk, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Some columns of a chunk, with the types of the whole file.

    Raises:
        TextError: a line that is not a record.
    """
    wanted = pa.schema([schema.field(name) for name in columns])
    options = arrow_json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore")
    return _parse(chunk, options).select(list(columns))


def _parse(chunk: Chunk, options: arrow_json.ParseOptions) -> pa.Table:
    size = max(len(chunk.data) + 1, 1 << 10)
    try:
        return arrow_json.read_json(
            pa.BufferReader(chunk.data), arrow_json.ReadOptions(use_threads=False, block_size=size), options
        )
    except pa.ArrowException as error:
        _locate(chunk)
        raise TextError(_with_line(one_line(error), chunk)) from None


def _locate(chunk: Chunk) -> None:
    """Raises the error of the first line that is not a record."""
    for line, text in zip(chunk.row_lines(), filter(None, map(bytes.strip, chunk.data.splitlines())), strict=False):
        try:
            record = json.loads(text)
        except ValueError as error:
            raise TextError(f"line {line}: not JSON: {one_line(error)}") from None
        if not isinstance(record, dict):
            raise TextError(f"line {line}: not a record {{...}}; a file has one on each line")


def _with_line(message: str, chunk: Chunk) -> str:
    """Arrow's message, with the line of the file in front instead of a row of the chunk at its end."""
    if (row := re.search(r" in row (\d+)$", message)) is None:
        return message
    lines = chunk.row_lines()
    text = message[: row.start()].removeprefix("JSON parse error: ")
    return f"line {lines[min(int(row[1]), len(lines) - 1)]}: {text}"
