"""Lists as files: Parquet, one row an entry, or JSON lines, one object a user."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from cm3_dist.inference.top_k_lists import Lists


class Writer(Protocol):
    """Appends lists to a file."""

    def add(self, lists: Lists) -> None:
        """Writes some users' lists behind the others."""
        ...

    def close(self) -> None:
        """Ends the file."""
        ...


class ParquetLists:
    """Columns user, rank (int32, from 1), item, score (float32)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None  # made when the columns' types are known

    def add(self, lists: Lists) -> None:
        """See `Writer`."""
        table = lists.table()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        """See `Writer`."""
        if self._writer is not None:
            self._writer.close()


class JsonLists:
    """{"user": id, "items": [ids, best first], "scores": [...]} a line."""

    def __init__(self, path: Path) -> None:
        self._handle = path.open("w", encoding="utf-8")

    def add(self, lists: Lists) -> None:
        """See `Writer`."""
        self._handle.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in json_objects(lists))

    def close(self) -> None:
        """See `Writer`."""
        self._handle.close()


WRITERS: dict[str, type[ParquetLists] | type[JsonLists]] = {".parquet": ParquetLists, ".jsonl": JsonLists}


def json_objects(lists: Lists) -> Iterator[dict[str, Any]]:
    """One object a user."""
    items, scores, begin = lists.items.to_pylist(), lists.scores.tolist(), 0
    for user, length in zip(lists.users.to_pylist(), lists.lengths.tolist(), strict=True):
        end = begin + length
        yield {"user": user, "items": items[begin:end], "scores": scores[begin:end]}
        begin = end


def join(parts: list[Path], target: Path) -> None:
    """All ranks' files one after the other; row groups and bytes are copied piece by piece."""
    if len(parts) == 1:
        parts[0].rename(target)
    elif target.suffix == ".jsonl":
        with target.open("wb") as sink:
            for path in parts:
                with path.open("rb") as source:
                    shutil.copyfileobj(source, sink)
    else:
        with pq.ParquetWriter(target, pq.read_schema(parts[0]), compression="zstd") as writer:
            for path in parts:
                with pq.ParquetFile(path) as file:
                    for group in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(group))
