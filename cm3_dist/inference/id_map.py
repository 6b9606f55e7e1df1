"""From row numbers to the users' and items' own ids and back, through the parts' memory-mapped id columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cm3_dist.errors import InputError
from partition.folder import layout
from partition.folder.arrays import node_schema, read_table
from partition.folder.manifest import Manifest
from partition.read.table_file import TableFile

Kind = Literal["user", "item"]
_FILES: dict[Kind, str] = {"user": layout.USERS, "item": layout.ITEMS}


class OwnIds:
    """The ids of one node type over all parts. Every rank can open every part's: they are only mapped, not read.

    Raises:
        InputError: a missing or torn file, by name.
    """

    def __init__(self, root: Path, manifest: Manifest, kind: Kind) -> None:
        self.kind = kind
        self._root, self._manifest = root, manifest
        self._stride = manifest.user_stride if kind == "user" else manifest.item_stride
        self._sizes = np.array([part.users if kind == "user" else part.items for part in manifest.parts])
        self.type = pa.string() if getattr(manifest, f"{kind}_id_type") == "string" else pa.int64()

    @cached_property
    def _tables(self) -> list[pa.Table]:
        schema = node_schema(self._manifest, self.kind)
        parts = range(self._manifest.num_parts)
        return [read_table(layout.part_dir(self._root, part) / _FILES[self.kind], schema) for part in parts]

    def part(self, part: int) -> pa.Table:
        """Columns `id` and `train_degree` of a part's nodes, in offset order."""
        return self._tables[part]

    def take(self, rows: np.ndarray) -> pa.Array:
        """The ids of global rows [n] int64, none of them padding."""
        part, offset = np.divmod(rows, self._stride)
        starts = np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        column = pa.chunked_array([chunk for table in self._tables for chunk in table["id"].chunks], self.type)
        found = column.take(pa.array(starts[part] + offset))
        return found.combine_chunks() if found.num_chunks != 1 else found.chunk(0)

    def find(self, ids: pa.Array) -> np.ndarray:
        """Global rows [n] int64 of `ids`, distinct and of the right type; -1 for those that there are not."""
        rows = np.full(len(ids), -1, np.int64)
        for number, table in enumerate(self._tables):
            for chunk_start, chunk in zip(_starts(table["id"]), table["id"].chunks, strict=True):
                place = pc.index_in(chunk, value_set=ids)
                offset = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
                known = place.drop_null().to_numpy()
                rows[known] = number * self._stride + chunk_start + offset
        return rows

    def rows(self, ids: Sequence[str | int] | np.ndarray | pa.Array) -> np.ndarray:
        """Global rows [n] int64 of ids in the data's own type, distinct or not.

        Raises:
            InputError: an id of another type, or one that the data does not have.
        """
        try:
            wanted = pa.array(ids, self.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise InputError(f"{self.kind} ids: those of {self._root} are of type {self.type}, all of them") from None
        distinct = wanted.unique()
        rows = self.find(distinct)
        if (rows < 0).any():
            unknown = distinct[int(np.argmax(rows < 0))].as_py()
            raise InputError(f"{self.kind} {unknown!r} is not among the {self.kind}s of {self._root}")
        return rows[pc.index_in(wanted, value_set=distinct).to_numpy()]

    def cast(self, ids: pa.Array, file: TableFile, column: str) -> pa.Array:
        """`ids` as read from a file, in the data's own type.

        Raises:
            InputError: text where the data has whole numbers.
        """
        if ids.type == self.type:
            return ids
        try:
            return ids.cast(self.type)
        except pa.ArrowInvalid:
            wrong = next(row for row, value in enumerate(ids.to_pylist()) if not str(value).lstrip("-").isdigit())
            raise file.error(
                f"{ids[wrong].as_py()!r} is text; the {self.kind} ids of the data are whole numbers", column, wrong
            ) from None


def _starts(column: pa.ChunkedArray) -> list[int]:
    lengths = [len(chunk) for chunk in column.chunks]
    return [sum(lengths[:index]) for index in range(len(lengths))]
