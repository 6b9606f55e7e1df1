"""Brings interactions, items and features together: one index per user and item, and where each feature row lies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition import columns_on_disk as blocks
from partition.errors import InputError
from partition.read.features import ListColumn, NpyFile, Source, is_feature_column
from partition.read.ids import IdColumn, encode
from partition.read.sources import Found, RawInteractions, Role, item_column, missing_column
from partition.read.table_file import TableFile, open_table
from partition.transform.dataset import Interactions


@dataclass(frozen=True)
class Inputs:
    """Everything read but the features themselves."""

    interactions: Interactions
    user_ids: pa.Array  # [users] int64 or string
    item_ids: pa.Array  # [items] likewise: the whole catalogue, in the order of the feature rows
    features: dict[str, Source]  # in the order of the curve's control points
    files: list[Path]  # all that were read


@dataclass(frozen=True)
class _Requested:
    """A modality before its rows are matched with items: a NumPy file, or a list column of tables."""

    name: str
    npy: Path | None = None
    tables: tuple[TableFile, ...] = ()
    column: str = ""


def resolve(
    found: Found,
    raw: RawInteractions,
    requested: Sequence[str],
    given: Mapping[Role, str | None],
    folder: Path | None = None,
) -> Inputs:
    """Numbers users and items, and finds every modality's rows.

    The catalogue is the items table if there is one, else the table of the first modality that comes as a table, else
    the rows of the NumPy files, whose row number is then the item's id. Items without an interaction stay in it.

    Args:
        found: the files.
        raw: their interactions.
        requested: modalities in their order as `NAME` (one that was found) or `NAME=FILE[:column]`; empty for all that
            were found, the image first and the others by name.
        given: the columns' names where they were given.
        folder: where columns of interactions go (see `partition.columns_on_disk`).

    Raises:
        InputError: no modality, feature rows that do not match the items, or an interaction with an unknown item.
    """
    modalities = [_requested(text, found) for text in requested] or _found(found)
    if not modalities:
        where = raw.files[0].path
        raise InputError(f"{where}: no item features; add an items table or NAME_feat.npy, or use --features NAME=FILE")
    names = [modality.name for modality in modalities]
    for modality in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", modality):
            raise InputError(f"--features: {modality!r} is no modality name; use letters, digits, _ and -")
        if names.count(modality) > 1:
            raise InputError(f"--features: modality {modality!r} occurs twice")
    catalogue = found.items or next((list(modality.tables) for modality in modalities if modality.tables), [])
    if catalogue:
        item, item_ids, features = _by_table(catalogue, raw, modalities, given, folder)
    else:
        item, item_ids, features = _by_number(raw, modalities, found.mapping.get("item"), folder)
    user_ids, user = encode(raw.users, folder)
    if "user" in found.mapping:
        user_ids = _own_ids(user_ids, found.mapping["user"], "userID")
    mapped = [file.path for role, file in found.mapping.items() if role == "user" or not catalogue]
    tables = [file.path for file in (*raw.files, *catalogue)]
    feature_files = [path for source in features.values() for path in source.paths]
    return Inputs(
        Interactions(blocks.joined(user, folder), item, raw.split, raw.time),
        user_ids,
        item_ids,
        features,
        list(dict.fromkeys([*tables, *mapped, *feature_files])),
    )


def _found(found: Found) -> list[_Requested]:
    modalities = [_Requested(name, npy=path) for name, path in found.features.items()]
    for column in dict.fromkeys(c for file in found.items for c in file.names if is_feature_column(file, c)):
        for file in found.items:
            if not is_feature_column(file, column):
                raise file.error("not a list of floats here, though it is in another items table", column)
        if column in found.features:
            raise found.items[0].error(f"modality {column!r} is also in {found.features[column]}", column)
        modalities.append(_Requested(column, tables=tuple(found.items), column=column))
    return sorted(modalities, key=lambda modality: (modality.name != "image", modality.name))


def _requested(text: str, found: Found) -> _Requested:
    name, equals, file = text.partition("=")
    if not equals:
        known = _found(found)
        for modality in known:
            if modality.name == name:
                return modality
        names = ", ".join(modality.name for modality in known) or "none"
        raise InputError(f"--features {name}: not among the modalities of the input ({names}); give NAME=FILE")
    path, column = Path(file), ""
    if not path.exists() and ":" in file:
        path, column = Path(file.rpartition(":")[0]), file.rpartition(":")[2]
    if path.suffix == ".npy":
        return _Requested(name, npy=path)
    table = open_table(path)
    column = column or name
    if not is_feature_column(table, column):
        lists = ", ".join(c for c in table.names if is_feature_column(table, c)) or "none"
        raise table.error(f"not a list column of floats (those are: {lists}); give it as FILE:column", column)
    return _Requested(name, tables=(table,), column=column)


def _by_number(
    raw: RawInteractions, modalities: Sequence[_Requested], mapping: TableFile | None, folder: Path | None
) -> tuple[np.ndarray, pa.Array, dict[str, Source]]:
    """Item id = row of the NumPy files."""
    files = {modality.name: NpyFile(modality.npy) for modality in modalities if modality.npy is not None}
    first, *others = files.values()
    for other in others:
        if other.rows != first.rows:
            raise InputError(f"{other.path}: {other.rows} rows, but {first.path} has {first.rows}; an item is a row")
    ids, codes = encode(raw.items, folder)
    if pa.types.is_string(ids.type):
        text = next(column for column in raw.items if len(column))
        raise text.file.error(
            f"the ids are text, so add an items table that lists them in the order of the rows of {first.path}",
            text.column,
        )
    code, number = blocks.joined(codes, folder), ids.to_numpy()
    row = blocks.first(code, lambda codes: number[codes] >= first.rows)
    if row is not None:
        item = number[code[row]]
        raise raw.error("item", row, f"item {item} has no features: {first.path} ends with row {first.rows - 1}")
    item = blocks.mapped(number.astype(blocks.index_type(first.rows)), code, folder)
    item_ids = pa.array(np.arange(first.rows))
    return item, item_ids if mapping is None else _own_ids(item_ids, mapping, "itemID"), {**files}


def _by_table(
    catalogue: Sequence[TableFile],
    raw: RawInteractions,
    modalities: Sequence[_Requested],
    given: Mapping[Role, str | None],
    folder: Path | None,
) -> tuple[np.ndarray, pa.Array, dict[str, Source]]:
    """Item index = row of the items table; other tables are matched by id, NumPy files by row."""
    tables = list(dict.fromkeys([*catalogue, *(table for modality in modalities for table in modality.tables)]))
    columns = [_item_ids(table, given) for table in tables]
    ids, codes = encode([*raw.items, *columns], folder)
    code, entry_of = (
        blocks.joined(codes[: len(raw.items)], folder),
        dict(zip(tables, codes[len(raw.items) :], strict=True)),
    )
    for column, entry in zip(columns, entry_of.values(), strict=True):
        _check_unique(column, ids, entry)
    entries = np.concatenate([entry_of[table] for table in catalogue])
    position = np.full(len(ids), -1)
    position[entries] = np.arange(len(entries))
    listing = ", ".join(str(table.path) for table in catalogue)
    listed = np.bincount(entries, minlength=len(ids))
    if listed.max() > 1:
        raise InputError(f"{listing}: item {ids[int(listed.argmax())].as_py()!r} is in two of these items tables")
    row = blocks.first(code, lambda codes: position[codes] < 0)
    if row is not None:
        raise raw.error("item", row, f"item {ids[int(code[row])].as_py()!r} has no features: it is not in {listing}")

    features: dict[str, Source] = {}
    for modality in modalities:
        if modality.npy is not None:
            source = NpyFile(modality.npy)
            if source.rows != len(entries):
                raise InputError(f"{modality.npy}: {source.rows} rows, but {listing} has {len(entries)} items")
            features[modality.name] = source
            continue
        rows = np.concatenate([position[entry_of[table]] for table in modality.tables])
        table = modality.tables[0]
        if len(rows) and rows.min() < 0:
            row = int(np.flatnonzero(rows < 0)[0])
            item = ids[int(entry_of[table][row])].as_py()
            raise table.error(f"item {item!r} is not in {listing}", _item_ids(table, given).column, row)
        if len(rows) < len(entries):
            absent = ids[int(entries[np.setdiff1d(np.arange(len(entries)), rows)[0]])].as_py()
            raise table.error(f"{len(rows)} rows, but {listing} has {len(entries)} items; {absent!r} is missing")
        features[modality.name] = ListColumn(modality.tables, modality.column, rows)
    return (
        blocks.mapped(position.astype(blocks.index_type(len(entries))), code, folder),
        ids.take(pa.array(entries)),
        features,
    )


def _item_ids(table: TableFile, given: Mapping[Role, str | None]) -> IdColumn:
    column = item_column(table, given)
    if column is None:
        raise missing_column(table, "item", given)
    return IdColumn.read(table, column)


def _check_unique(column: IdColumn, ids: pa.Array, entry: np.ndarray) -> None:
    """Refuses an id that is listed twice; the row named is that of the second time."""
    order = np.argsort(entry, kind="stable")
    repeats = order[1:][np.diff(entry[order]) == 0]
    if len(repeats):
        row = int(repeats.min())
        raise column.file.error(
            f"{ids[int(entry[row])].as_py()!r} a second time; this table lists an id once",
            column.column,
            row,
        )


def _own_ids(numbers: pa.Array, mapping: TableFile, index: str) -> pa.Array:
    """The ids that MMRec's mapping file gives to `numbers`, in their order."""
    others = [name for name in mapping.names if name != index]
    if index not in mapping.names or len(others) != 1:
        raise mapping.error(f"expected column {index!r} and one with the own ids, not {', '.join(mapping.names)}")
    columns = [IdColumn.read(mapping, name) for name in (index, others[0])]
    (known, (position,)), (own, (code,)) = (encode([column]) for column in columns)
    for column, ids, entry in ((columns[0], known, position), (columns[1], own, code)):
        _check_unique(column, ids, entry)
    if not pa.types.is_integer(known.type) or not pa.types.is_integer(numbers.type):
        raise mapping.error("maps numbers to own ids, but there is text among the numbers", index)
    found = pc.index_in(numbers, value_set=known)
    if found.null_count:
        absent = numbers.filter(pc.is_null(found))[0].as_py()
        raise mapping.error(f"{absent} is not in it", index)
    row = np.empty(len(position), np.int64)
    row[position] = np.arange(len(position))
    return own.take(pa.array(code[row[found.to_numpy()]]))
