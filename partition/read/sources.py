"""Finds the tables and feature files of a data set, and reads the interactions and the catalogue of items.

A table with a user and an item column holds interactions; a table with an item column alone is an items table, whose
list columns are feature modalities. `NAME_feat.npy` is the modality NAME. A folder with an `.inter` file is MMRec's
layout: numbers as ids, feature row = item number, and `i_id_mapping.csv` with the items' own ids.
"""

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
from partition.read.ids import IdColumn, IdReader
from partition.read.table_file import SUFFIXES, TableFile, open_table
from partition.transform.dataset import TEST, TRAIN, VALIDATION

Role = Literal["user", "item", "time", "split"]
ALIASES: dict[Role, tuple[str, ...]] = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "asin", "iid"),
    "time": ("timestamp", "time", "ts"),
    "split": ("x_label", "split"),
}
SPLIT_VALUES = {
    **{"0": TRAIN, "train": TRAIN, "training": TRAIN},
    **{"1": VALIDATION, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION},
    **{"2": TEST, "test": TEST},
}
MAPPINGS: dict[str, Role] = {"u_id_mapping.csv": "user", "i_id_mapping.csv": "item"}  # MMRec's number <-> own id
_FEATURES = "_feat.npy"
_FOLDER_SUFFIXES = SUFFIXES - {
    ".txt"
}  # a folder's .txt files are as often notes as tables: name them to have them read


@dataclass(frozen=True)
class Found:
    """What `--input` holds."""

    name: str
    interactions: list[TableFile]
    items: list[TableFile]  # items tables, in the order of their names
    features: dict[str, Path]  # modality -> NAME_feat.npy
    mapping: dict[Role, TableFile]  # MMRec's mapping files


@dataclass(frozen=True)
class RawInteractions:
    """Interactions as they stand in their files, one id column a file."""

    files: list[TableFile]
    users: list[IdColumn]
    items: list[IdColumn]
    split: np.ndarray | None  # [rows] int8
    time: np.ndarray | None  # [rows] int64 or float64
    split_column: str | None  # its name in the first file

    def error(self, role: Literal["user", "item"], row: int, message: str) -> InputError:
        """An error about the id in one row, counted over all files."""
        for column in self.users if role == "user" else self.items:
            if row < len(column):
                break
            row -= len(column)
        return column.file.error(message, column.column, row)


def column_of(file: TableFile, role: Role, given: Mapping[Role, str | None]) -> str | None:
    """The column that plays a role: the one asked for, else the one with a usual name; None if there is none.

    Raises:
        InputError: two columns have a usual name.
    """
    wanted = given.get(role)
    if wanted is not None:
        return wanted if wanted in file.names else None
    usual = usual_columns(file, role)
    if len(usual) > 1:
        both = " and ".join(map(repr, usual[:2]))
        raise file.error(f"columns {both} could both be the {role} column; choose with --{role}-column")
    return usual[0] if usual else None


def usual_columns(file: TableFile, role: Role) -> list[str]:
    """The columns with a usual name for a role; RecBole writes the type into the name: user_id:token."""
    return [name for name in file.names if name.split(":")[0].lower() in ALIASES[role]]


def item_column(file: TableFile, given: Mapping[Role, str | None]) -> str | None:
    """The column of an items table with the ids: by the interactions' name for it, else by a usual one."""
    return column_of(file, "item", given) or column_of(file, "item", {})


def missing_column(file: TableFile, role: Role, given: Mapping[Role, str | None]) -> InputError:
    """The error for a table without the column it needs."""
    columns, wanted = ", ".join(file.names), given.get(role)
    if wanted is not None:
        return file.error(f"no column {wanted!r} (--{role}-column); the columns are {columns}")
    usual = ", ".join(ALIASES[role])
    return file.error(f"no {role} column ({usual}); the columns are {columns}; name it with --{role}-column")


def find(inputs: Sequence[Path], given: Mapping[Role, str | None], name: str | None = None) -> Found:
    """Sorts out the files of `--input`.

    Args:
        inputs: files, or folders (not searched deeper).
        given: the columns' names where they were given.
        name: the data set's name; by default that of the `.inter` file, or of the first input.

    Raises:
        InputError: a missing or unreadable file, a table that is neither interactions nor items, no interactions.
    """
    tables: list[TableFile] = []
    features: dict[str, Path] = {}
    mapping: dict[Role, TableFile] = {}
    for place in inputs:
        if not place.exists():
            raise InputError(f"{place}: no such file or folder")
        for path in _files_of(place) if place.is_dir() else [place]:
            if path.name.endswith(_FEATURES):
                modality = path.name.removesuffix(_FEATURES)
                if modality in features:
                    raise InputError(f"{path}: a second file for modality {modality!r}, after {features[modality]}")
                features[modality] = path
            elif path.name in MAPPINGS:
                mapping[MAPPINGS[path.name]] = open_table(path)
            else:
                tables.append(open_table(path))
    if not tables:
        raise InputError(f"{inputs[0]}: no table in it; looked for *{', *'.join(sorted(_FOLDER_SUFFIXES))}")
    with_users = [table for table in tables if column_of(table, "user", given)]
    items = [table for table in tables if table not in with_users]
    for table in tables:
        if not (item_column(table, given) if table in items else column_of(table, "item", given)):
            raise missing_column(table, "item", given)
    if not with_users:
        raise missing_column(items[0], "user", given)
    first = inputs[0].resolve()
    log = with_users[0].path
    default = log.stem if log.suffix == ".inter" else first.name if first.is_dir() else first.stem
    return Found(name or default, with_users, items, features, mapping)


def _files_of(folder: Path) -> list[Path]:
    """The files of a folder that are read, in the order of their names."""
    inside = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] not in "._")
    inter = [path for path in inside if path.suffix == ".inter"]
    named = [path for path in inter if path.stem == folder.resolve().name]
    if len(inter) > 1 and not named:
        files = ", ".join(path.name for path in inter)
        raise InputError(f"{folder}: several .inter files ({files}); give the one to read with --input")
    tables = (named or inter)[:1] or [path for path in inside if path.suffix in _FOLDER_SUFFIXES]
    by_name = [path for path in inside if path.name.endswith(_FEATURES) or path.name in MAPPINGS]
    return list(dict.fromkeys([*tables, *by_name]))


def read_interactions(
    tables: Sequence[TableFile],
    given: Mapping[Role, str | None],
    split: Literal["column", "auto"] | None,
    time: bool,
    folder: Path | None = None,
) -> RawInteractions:
    """Reads the columns that are needed, into files in `folder` (see `partition.columns_on_disk`).

    Args:
        tables: files with a user and an item column each.
        given: the columns' names where they were given.
        split: read the split labels; "auto" only if the files have any.
        time: read the times.

    Raises:
        InputError: a column missing from a file, a null, an unknown split label, times that are not times, no rows.
    """
    labelled = split == "column" or (
        split == "auto"
        and (given.get("split") is not None or any(column_of(table, "split", given) for table in tables))
    )
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
        raise tables[0].error("has no rows")
    dated = [kind for kind, _ in times]
    if len(set(dated)) > 1:
        odd = tables[dated.index(not dated[0])]
        raise odd.error(f"dates in one file and numbers in another ({tables[0].path}); make both the same")
    return RawInteractions(
        list(tables),
        ids["user"],
        ids["item"],
        labels.column() if labelled else None,
        blocks.joined([values for _, values in times], folder) if time else None,
        column_of(tables[0], "split", given) if labelled else None,
    )


def _split_labels(file: TableFile, column: str, values: pa.Array, first: int) -> np.ndarray:
    """[rows] int8 of a batch that begins with row `first`."""
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise file.error("the split label is missing", column, first + row)
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    names = values.dictionary.to_pylist()
    meaning = np.array([SPLIT_VALUES.get(str(value).lower(), -1) for value in names], np.int8)
    labels: np.ndarray = meaning[values.indices.to_numpy(zero_copy_only=False)]
    if len(labels) and labels.min() < 0:
        row = int(np.flatnonzero(labels < 0)[0])
        value = names[values.indices[row].as_py()]
        message = f"unknown split {value!r}; expected 0, 1, 2 or train, validation, test"
        raise file.error(message, column, first + row)
    return labels


def _times(file: TableFile, column: str, folder: Path | None) -> tuple[bool, np.ndarray]:
    """Whether they are dates, and [rows] int64 (microseconds for dates) or float64.

    Text is read at once: what its times are written as shows only when all have been read.
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
    """[n] int64 or float64 of one batch of times, which begins with row `first`."""
    kind = values.type
    if _dates(kind):
        values = pc.cast(values, pa.timestamp("us"), safe=False).cast(pa.int64())
    elif pa.types.is_integer(kind) and kind != pa.uint64():
        values = values.cast(pa.int64())
    elif pa.types.is_floating(kind):
        values = pc.if_else(pc.is_finite(values), values, None).cast(pa.float64())
    elif len(values):
        raise file.error(f"has type {kind}; times are numbers or dates such as 2026-01-31 12:00:00", column)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise file.error("the time is missing", column, first + row)
    found: np.ndarray = values.to_numpy(zero_copy_only=False)
    return found
