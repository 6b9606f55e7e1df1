"""Maps global rows to the external ids of users and items, and back, through memory-mapped id columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, Union

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cm3_dist.errors import InputError
from partition.folder import layout
from partition.folder.arrays import node_schema
from partition.folder.manifest import Manifest

NodeType = Literal["user", "item"]
Ids: TypeAlias = Union[Sequence[str], Sequence[int], np.ndarray, "pa.Array"]  # external ids given in Python
_FILES: dict[NodeType, str] = {"user": layout.USERS, "item": layout.ITEMS}
BLOCK = 1 << 20  # ids read at a time


class IdMap:
    """The external ids of one node type, over all parts.

    A part's file is mapped when it is first needed, and only the ids that are looked up are read from it; `find` reads
    the id columns of all parts once, block by block. Any rank can look up any part. Text ids are returned as
    `large_string`, so that more than 2 GiB of them fit in one array.

    Args:
        root: prepared folder.
        manifest: of the folder.
        node_type: "user" or "item".
    """

    def __init__(self, root: Path, manifest: Manifest, node_type: NodeType) -> None:
        self.node_type = node_type
        self._root = root
        self._schema = node_schema(manifest, node_type)
        self._stride = manifest.user_stride if node_type == "user" else manifest.item_stride
        self._tables: list[pa.Table | None] = [None] * manifest.num_parts
        self.stored_type: pa.DataType = self._schema["id"]  # in files: large_string, string (before schema 4) or int64
        self.type = pa.large_string() if self.stored_type == pa.string() else self.stored_type

    def part(self, part: int) -> pa.Table:
        """Columns `id` (of `stored_type`) and `train_degree` of a part's nodes, in offset order; memory-mapped.

        Raises:
            InputError: the file is missing or torn, or has other columns.
        """
        table = self._tables[part]
        if table is None:
            path = layout.part_dir(self._root, part) / _FILES[self.node_type]
            table = self._tables[part] = _map_table(path, self._schema)
        return table

    def take(self, rows: np.ndarray) -> pa.Array:
        """The ids of global rows [n] int64, none of them padding."""
        part, offset = np.divmod(rows, self._stride)
        order = np.argsort(part, kind="stable")
        found = [pa.array([], self.type)]
        for number in np.unique(part):
            column, wanted = self.part(int(number))["id"], offset[order][part[order] == number]
            for begin in range(0, len(wanted), BLOCK):
                found += column.take(pa.array(wanted[begin : begin + BLOCK])).cast(self.type).chunks
        position = np.empty(len(rows), np.int64)
        position[order] = np.arange(len(rows))
        return pa.concat_arrays(found).take(pa.array(position))

    def part_ids(self, parts: Sequence[int]) -> pa.Array:
        """All ids of some parts, in the order of their rows."""
        chunks = [chunk for part in parts for chunk in self.part(part)["id"].cast(self.type).chunks]
        return pa.concat_arrays([pa.array([], self.type), *chunks])

    def find(self, ids: pa.Array) -> np.ndarray:
        """Global rows [n] int64 of distinct `ids`; -1 where the data has no such id."""
        ids = ids.cast(self.type)
        rows = np.full(len(ids), -1, np.int64)
        for number in range(len(self._tables)):
            for begin, block in _blocks(self.part(number)["id"]):
                position = pc.index_in(block.cast(self.type), value_set=ids)
                offset = np.flatnonzero(position.is_valid().to_numpy(zero_copy_only=False))
                rows[position.drop_null().to_numpy()] = number * self._stride + begin + offset
        return rows

    def find_any(self, ids: pa.Array) -> np.ndarray:
        """As `find`, for ids that may occur more than once."""
        distinct = ids.unique()
        return self.find(distinct)[pc.index_in(ids, value_set=distinct).to_numpy()]

    def rows(self, ids: Ids) -> np.ndarray:
        """Global rows [n] int64 of ids given in Python, which may occur more than once.

        Raises:
            InputError: an id has another type than those of the data, or is not in the data.
        """
        wrong_type = InputError(
            f"{self.node_type} ids: those of {self._root} are of type {self.stored_type}", "ids.type"
        )
        if isinstance(ids, pa.Array | pa.ChunkedArray):
            if pa.types.is_integer(ids.type) != pa.types.is_integer(self.type):
                raise wrong_type
            wanted = ids.cast(self.type)
        else:
            try:
                wanted = pa.array(ids, self.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                raise wrong_type from None
        rows = self.find_any(wanted)
        if (rows < 0).any():
            unknown = wanted[int(np.argmax(rows < 0))].as_py()
            raise InputError(
                f"{self.node_type} {unknown!r} is not among the {self.node_type}s of {self._root}", "ids.unknown"
            )
        return rows

    def parse(self, text: str) -> str | int:
        """An id typed on a command line.

        Raises:
            InputError: it is not a number, but the data's ids are.
        """
        if self.type != pa.int64():
            return text
        if not text.removeprefix("-").isdigit():
            kind = self.node_type
            raise InputError(f"{kind} {text!r}: the {kind} ids of the data are whole numbers", "ids.type")
        return int(text)


def _map_table(path: Path, schema: dict[str, pa.DataType]) -> pa.Table:
    """Maps a file without reading its values."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate()
    except (OSError, pa.ArrowInvalid) as error:
        message = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as an Arrow file: {message}", "prepared.torn") from None
    if {field.name: field.type for field in table.schema} != schema:
        columns = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise InputError(f"{path}: has columns {columns}; prepare the data again", "prepared.torn")
    return table


def _blocks(column: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    """Position of the first value, and up to BLOCK values."""
    position = 0
    for chunk in column.chunks:
        for begin in range(0, len(chunk), BLOCK):
            yield position + begin, chunk.slice(begin, BLOCK)
        position += len(chunk)
