"""The items table in blocks of rows: ids, texts, and the image of each item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from partition.errors import InputError
from partition.extract.images import Picture, folder_index
from partition.read.ids import IdColumn
from partition.read.sources import Role, item_column, missing_column
from partition.read.table_file import TableFile, open_table


@dataclass(frozen=True)
class Item:
    """The text and the image of one item, if any."""

    text: str | None
    picture: Picture | None


class Items:
    """A catalogue to encode.

    Args:
        path: table with an item column.
        column: name of the item column, if it is not a usual one.
        text: columns whose texts are joined.
        images: a column of the table, or a folder with one file ID.jpg (or another image format) per item.

    Raises:
        InputError: no such file, column or folder, no rows, an id that is missing or listed twice.
    """

    def __init__(self, path: Path, column: str | None, text: list[str], images: str | None) -> None:
        self._table = open_table(path)
        given: dict[Role, str | None] = {"item": column}
        name = item_column(self._table, given)
        if name is None:
            raise missing_column(self._table, "item", given)
        for wanted in text:
            if wanted not in self._table.names:
                message = f"no such column; the columns are {', '.join(self._table.names)}"
                raise self._table.error(message, wanted, code="column.missing")
        self.ids = _unique_ids(self._table, name)
        self._text, self._images, self._folder = text, None, None
        if images is not None:
            self._images, self._folder = self._picture_source(images)

    def blocks(self, rows: int) -> Iterator[list[Item]]:
        """All items in the order of the table, at most `rows` at a time; the same blocks in every call."""
        columns = [*self._text, *([self._images] if self._images else [])]
        start = 0
        for batch in self._batches(columns, rows):
            texts = self._texts(batch, start)
            pictures = self._pictures(batch, start)
            yield [Item(text, picture) for text, picture in zip(texts, pictures, strict=True)]
            start += batch.num_rows

    def _batches(self, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        if not columns:  # images in a folder need no column
            for begin in range(0, len(self.ids), rows):
                yield pa.record_batch({"id": self.ids.slice(begin, rows)})
        elif self._table.is_text:
            yield from self._table.read(columns).combine_chunks().to_batches(max_chunksize=rows)
        else:
            yield from self._table.batches(columns, rows)

    def _texts(self, batch: pa.RecordBatch, start: int) -> list[str | None]:
        pieces = [[_cleaned(value) for value in self._strings(batch.column(name), name)] for name in self._text]
        if not pieces:
            return [None] * batch.num_rows
        return ["\n".join(filter(None, parts)) or None for parts in zip(*pieces, strict=True)]

    def _strings(self, values: pa.Array, name: str) -> list[str | None]:
        kind = values.type
        if pa.types.is_dictionary(kind):
            values, kind = values.dictionary_decode(), kind.value_type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            if pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type):
                return [None if row is None else " ".join(filter(None, row)) for row in values.to_pylist()]
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
            return values.to_pylist()
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return pc.cast(values, pa.string()).to_pylist()
        raise self._table.error(
            f"has type {kind}; texts are text, lists of text, or numbers", name, code="extract.text"
        )

    def _picture_source(self, images: str) -> tuple[str | None, dict[str, Path] | None]:
        is_column, folder = images in self._table.names, Path(images)
        if is_column and folder.is_dir():
            message = f"is a column, and there is a folder {images} too; write ./{images} for the folder"
            raise self._table.error(message, images, code="extract.ambiguous")
        if is_column:
            return images, None
        if not folder.is_dir():
            message = f"--images {images}: neither a column of {self._table.path} nor a folder"
            raise InputError(message, "extract.image")
        return None, folder_index(folder)

    def _pictures(self, batch: pa.RecordBatch, start: int) -> list[Picture | None]:
        if self._folder is not None:
            names = self.ids.slice(start, batch.num_rows).to_pylist()
            paths = [self._folder.get(str(name)) for name in names]
            return [None if path is None else Picture(path=path) for path in paths]
        if self._images is None:
            return [None] * batch.num_rows
        values = batch.column(self._images)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        return [self._picture(value, row) for row, value in enumerate(values.to_pylist(), start)]

    def _picture(self, value: object, row: int) -> Picture | None:
        """The image of a path, of the bytes of a file, or of a record {bytes, path} as in Hugging Face data sets."""
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not value:
            return None
        if isinstance(value, bytes):
            return Picture(data=value)
        if not isinstance(value, str):
            message = f"{type(value).__name__} is neither a path nor an image"
            raise self._table.error(message, self._images, row, code="extract.image")
        if "://" in value:
            message = f"{value}: images are not downloaded; give files"
            raise self._table.error(message, self._images, row, code="extract.image")
        return Picture(path=self._table.path.parent / value)


def _cleaned(text: str | None) -> str | None:
    return (text or "").strip() or None


def _unique_ids(table: TableFile, column: str) -> pa.Array:
    found = IdColumn.read(table, column)
    if not len(found):
        raise table.error("has no rows", code="table.empty")
    found.check_unique()
    return found.values
