"""Writes top-K lists to files: Parquet, one row per list entry, or JSON lines, one object per user."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cm3_dist.inference.top_k_lists import TopKLists

# A block of this kind opens a file, and calling what it returns appends lists.
ListWriter = Callable[[Path, pa.Schema], AbstractContextManager[Callable[[TopKLists], None]]]


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[TopKLists], None]]:
    """Columns user, rank (int32, from 1), item, score (float32)."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield lambda lists: writer.write_table(lists.table(schema))


@contextmanager
def json_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[TopKLists], None]]:
    """Per user a line {"user": id, "items": [ids, best first], "scores": [...]}."""
    with path.open("w", encoding="utf-8") as handle:
        yield lambda lists: handle.writelines(
            json.dumps(line, ensure_ascii=False) + "\n" for line in json_objects(lists)
        )


WRITERS: dict[str, ListWriter] = {".parquet": parquet_writer, ".jsonl": json_writer}


def json_objects(lists: TopKLists) -> Iterator[dict[str, Any]]:
    """One object per user."""
    items, scores, begin = lists.items.to_pylist(), lists.scores.tolist(), 0
    for user, length in zip(lists.users.to_pylist(), lists.lengths.tolist(), strict=True):
        end = begin + length
        yield {"user": user, "items": items[begin:end], "scores": scores[begin:end]}
        begin = end


def join(parts: list[Path], target: Path) -> None:
    """Concatenates the files of all ranks, a row group or a block of bytes at a time."""
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
