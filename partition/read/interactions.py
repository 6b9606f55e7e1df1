"""Reads the interaction log: ids, split labels and times, one batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from partition import columns_on_disk as blocks
from partition.errors import InputError
from partition.options import SplitMethod
from partition.read.ids import IdColumn, IdReader
from partition.read.sources import Role, column_of, missing_column
from partition.read.table_file import TableFile, first_null
from partition.transform.dataset import TEST, TRAIN, VALIDATION

SPLIT_VALUES = {
    **{"0": TRAIN, "train": TRAIN, "training": TRAIN},
    **{"1": VALIDATION, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION},
    **{"2": TEST, "test": TEST},
}


@dataclass(frozen=True)
class RawInteractions:
    """Interactions as they are in their files, one id column per file."""

    files: list[TableFile]
    users: list[IdColumn]
    items: list[IdColumn]
    split: np.ndarray | None  # [rows] int8
    time: np.ndarray | None  # [rows] int64 or float64
    split_column: str | None  # its name in the first file

    def error(self, role: Literal["user", "item"], row: int, message: str, code: str) -> InputError:
        """An error about the id in `row`, counted over all files."""
        for column in self.users if role == "user" else self.items:
            if row < len(column):
                break
            row -= len(column)
        return column.file.error(message, column.column, row, code=code)


def read_interactions(
    tables: Sequence[TableFile],
    given: Mapping[Role, str | None],
    split: SplitMethod,
    folder: Path | None = None,
) -> RawInteractions:
    """Reads the columns that are needed into files in `folder` (see `partition.columns_on_disk`).

    Args:
        tables: files with a user and an item column each.
        given: names of the columns, where they were given.
        split: determines whether labels are read (COLUMN, and AUTO if the files have any) or times (LEAVE_LAST_OUT).
        folder: for the columns.

    Raises:
        InputError: a column missing from a file, a null, an unknown split label, times that are not times, no rows.
    """
    time = split is SplitMethod.LEAVE_LAST_OUT
    labelled = split is SplitMethod.COLUMN
    if split is SplitMethod.AUTO:
        labelled = given.get("split") is not None or any(column_of(table, "split", given) for table in tables)
    needed: dict[Role, bool] = {"user": True, "item": True, "split": labelled, "time": time}
    roles = [role for role, wanted in needed.items() if wanted]
    ids: dict[Role, list[IdColumn]] = {"user": [], "item": []}
    labels, times = blocks.Growing(np.int8, folder), []
    for file in tables:
        names: dict[Role, str] = {}
        for role in roles:
            column = column_of(file, role, given)
            if column is None:
                raise missing_column(file, role, given)
            names[role] = column
        readers = {role: IdReader(file, names[role], folder) for role in ids}
        encoded, row = [column for role, column in names.items() if role != "time"], 0
        bar = tqdm(
            desc=f"read {file.path.name}", total=file.rows, unit="row", unit_scale=True, disable=None, leave=False
        )
        with bar:
            for batch in file.batches(list(dict.fromkeys(encoded)), blocks.BLOCK, encoded):
                for role, reader in readers.items():
                    reader.add(batch[names[role]])
                if labelled:
                    labels.append(_split_labels(file, names["split"], batch[names["split"]], row))
                row += len(batch)
                bar.update(len(batch))
        for role, reader in readers.items():
            ids[role].append(reader.done())
        if time:
            times.append(_times(file, names["time"], folder))
    if not sum(map(len, ids["user"])):
        raise tables[0].error("has no rows", code="table.empty")
    dated = [kind for kind, _ in times]
    if len(set(dated)) > 1:
        odd = tables[dated.index(not dated[0])]
        message = f"dates in one file and numbers in another ({tables[0].path}); make both the same"
        raise odd.error(message, code="time.mixed")
    return RawInteractions(
        files=list(tables),
        users=ids["user"],
        items=ids["item"],
        split=labels.column() if labelled else None,
        time=blocks.joined([values for _, values in times], folder) if time else None,
        split_column=column_of(tables[0], "split", given) if labelled else None,
    )


def _split_labels(file: TableFile, column: str, values: pa.Array, first: int) -> np.ndarray:
    """[rows] int8 labels of a batch that begins with row `first`."""
    if values.null_count:
        raise file.error("the split label is missing", column, first + first_null(values), code="split.label")
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    names = values.dictionary.to_pylist()
    meaning = np.array([SPLIT_VALUES.get(str(value).lower(), -1) for value in names], np.int8)
    labels: np.ndarray = meaning[values.indices.to_numpy(zero_copy_only=False)]
    if len(labels) and labels.min() < 0:
        row = int(np.flatnonzero(labels < 0)[0])
        value = names[values.indices[row].as_py()]
        message = f"unknown split {value!r}; expected 0, 1, 2 or train, validation, test"
        raise file.error(message, column, first + row, code="split.label")
    return labels


def _times(file: TableFile, column: str, folder: Path | None) -> tuple[bool, np.ndarray]:
    """Whether the times are dates; and the times, [rows] int64 (microseconds for dates) or float64.

    Text is read in one go, because the type of its times is known only when all have been read.
    """
    table = file.read([column]) if file.is_text else None
    batches: Iterable[pa.RecordBatch] = file.batches([column], blocks.BLOCK) if table is None else table.to_batches()
    schema: pa.Schema = file.schema if table is None else table.schema
    kind = schema.field(column).type
    found = blocks.Growing(np.float64 if pa.types.is_floating(kind) else np.int64, folder)
    for batch in batches:
        found.append(_numbers(file, column, batch.column(0), len(found)))
    return _dates(kind), found.column()


def _dates(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(kind) and not pa.types.is_time(kind) and not pa.types.is_duration(kind)


def _numbers(file: TableFile, column: str, values: pa.Array, first: int) -> np.ndarray:
    """[n] int64 or float64 times of a batch that begins with row `first`."""
    kind = values.type
    if _dates(kind):
        values = pc.cast(values, pa.timestamp("us"), safe=False).cast(pa.int64())
    elif pa.types.is_integer(kind) and kind != pa.uint64():
        values = values.cast(pa.int64())
    elif pa.types.is_floating(kind):
        values = pc.if_else(pc.is_finite(values), values, None).cast(pa.float64())
    elif len(values):
        message = f"has type {kind}; times are numbers or dates such as 2026-01-31 12:00:00"
        raise file.error(message, column, code="time.type")
    if values.null_count:
        raise file.error("the time is missing", column, first + first_null(values), code="time.missing")
    found: np.ndarray = values.to_numpy(zero_copy_only=False)
    return found
