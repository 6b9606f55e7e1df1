"""The items table in blocks of rows: ids, texts, and the image of each item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from partition.errors import InputError
from partition.extract.image_column import can_be_image, pictures_of
from partition.extract.image_folder import ImageFolder
from partition.extract.images import Picture
from partition.extract.texts import can_be_text, is_number, texts_of
from partition.read.ids import IdColumn
from partition.read.sources import Role, item_column, missing_column
from partition.read.table_file import TableFile, open_table


@dataclass(frozen=True)
class Item:
    """The text and the image of one item, if any."""

    text: str | None
    picture: Picture | None
    wrong: tuple[str, ...] = ()  # texts that cannot be used, and why


class Items:
    """A catalogue to encode.

    Args:
        path: table with an item column.
        column: name of the item column, if it is not a usual one.
        text: columns whose texts are joined.
        images: a column of the table, or a folder with one file ID.jpg (or another image format) per item.

    Raises:
        InputError: no such file, column or folder, no rows, an id that is missing or listed twice, a column that cannot
            hold texts or images, two files that could be the image of one item.
    """

    def __init__(self, path: Path, column: str | None, text: list[str], images: str | None) -> None:
        self._table = open_table(path)
        given: dict[Role, str | None] = {"item": column}
        name = item_column(self._table, given)
        if name is None:
            raise missing_column(self._table, "item", given)
        for wanted in text:
            self._check_text(wanted)
        self._text = text
        self._images: str | None = None
        folder = None if images is None else self._picture_source(images)
        self.ids = _unique_ids(self._table, name)
        self.folder = None if folder is None else ImageFolder.read(folder, self.ids.to_pylist())

    @property
    def numbers(self) -> list[str]:
        """Those of the text columns that hold numbers."""
        schema = self._table.schema
        return [] if schema is None else [name for name in self._text if is_number(schema.field(name).type)]

    def blocks(self, rows: int) -> Iterator[list[Item]]:
        """All items in the order of the table, at most `rows` at a time; the same blocks in every call."""
        columns = list(dict.fromkeys([*self._text, *([self._images] if self._images else [])]))
        start = 0
        for batch in self._batches(columns, rows):
            texts = self._texts(batch)
            pictures = self._pictures(batch, start)
            yield [Item(text, picture, wrong) for (text, wrong), picture in zip(texts, pictures, strict=True)]
            start += batch.num_rows

    def _batches(self, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        if not columns:  # images in a folder need no column
            for begin in range(0, len(self.ids), rows):
                yield pa.record_batch({"id": self.ids.slice(begin, rows)})
            return
        yield from self._table.batches(columns, rows, as_bytes=True)

    def _texts(self, batch: pa.RecordBatch) -> list[tuple[str | None, tuple[str, ...]]]:
        parts: list[list[str]] = [[] for _ in range(batch.num_rows)]
        wrong: list[list[str]] = [[] for _ in range(batch.num_rows)]
        for name in self._text:
            texts, reasons = texts_of(batch.column(name))
            for row, text in enumerate(texts):
                if text is not None:
                    parts[row].append(text)
            for row, reason in reasons.items():
                wrong[row].append(f"{name}: {reason}")
        return [("\n".join(texts) or None, tuple(reasons)) for texts, reasons in zip(parts, wrong, strict=True)]

    def _check_text(self, name: str) -> None:
        if name not in self._table.names:
            message = f"no such column; the columns are {', '.join(self._table.names)}"
            raise self._table.error(message, name, code="column.missing")
        if self._table.schema is not None and self._table.names.count(name) == 1:
            kind = self._table.schema.field(name).type
            if not can_be_text(kind):
                message = f"has type {kind}; texts are text, numbers, or lists of them"
                raise self._table.error(message, name, code="extract.text")

    def _picture_source(self, images: str) -> Path | None:
        """The folder; None if the images are a column."""
        folder = Path(images)
        if images not in self._table.names:
            if not folder.is_dir():
                message = f"--images {images}: neither a column of {self._table.path} nor a folder"
                raise InputError(message, "extract.image")
            return folder
        if folder.is_dir():
            message = f"is a column, and there is a folder {images} too; write ./{images} for the folder"
            raise self._table.error(message, images, code="extract.ambiguous")
        if self._table.schema is not None and self._table.names.count(images) == 1:
            kind = self._table.schema.field(images).type
            if not can_be_image(kind):
                message = f"has type {kind}; images are paths, the bytes of files, or records {{bytes, path}}"
                raise self._table.error(message, images, code="extract.image")
        self._images = images
        return None

    def _pictures(self, batch: pa.RecordBatch, start: int) -> list[Picture | None]:
        if self.folder is not None:
            paths = [self.folder.get(name) for name in self.ids.slice(start, batch.num_rows).to_pylist()]
            return [None if path is None else Picture(path=path) for path in paths]
        if self._images is None:
            return [None] * batch.num_rows
        values = batch.column(self._images)
        if self._table.is_text:  # `values` are the bytes of paths, not of images
            values = pc.cast(values, options=pc.CastOptions(pa.large_string(), allow_invalid_utf8=True))
        return list(pictures_of(values, self._table.path.parent))


def _unique_ids(table: TableFile, column: str) -> pa.Array:
    found = IdColumn.read(table, column)
    if not len(found):
        raise table.error("has no rows", code="table.empty")
    found.check_unique()
    return found.values
