"""Brings interactions, items and features together: one index per user and item, and a source for each feature row."""

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
from partition.read.feature_sources import (
    ListColumn,
    MatrixFile,
    Source,
    is_feature_column,
    is_matrix_file,
    refused_column,
)
from partition.read.feature_types import why_unusable
from partition.read.ids import IdColumn, check_unique, encode
from partition.read.interactions import RawInteractions
from partition.read.sources import Found, Role, item_column, missing_column
from partition.read.table_file import TableFile, open_table
from partition.transform.dataset import Interactions


@dataclass(frozen=True)
class Inputs:
    """Everything that is read except the values of the features."""

    name: str  # of the data set
    raw: RawInteractions
    interactions: Interactions
    user_ids: pa.Array  # [users] int64 or string
    item_ids: pa.Array  # [items] int64 or string: the whole catalogue, in the order of the feature rows
    features: dict[str, Source]  # in the order of the control points of the curve
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
    """Numbers users and items, and finds the rows of every modality.

    The catalogue is the items table if there is one; else the table of the first modality that is in a table; else the
    rows of the NumPy files, whose row number is then the id of the item. Items without an interaction stay in it.

    Args:
        found: the files.
        raw: their interactions.
        requested: modalities in order, as `NAME` (one that was found) or `NAME=FILE[:column]`; empty for all that were
            found, the image first and the others by name.
        given: names of the columns, where they were given.
        folder: for columns of interactions (see `partition.columns_on_disk`).

    Raises:
        InputError: no modality, feature rows that do not match the items, or an interaction with an unknown item.
    """
    if not requested:
        _check_columns(found)
    modalities = [_requested(text, found) for text in requested] or _found(found)
    _check_names(modalities, raw)
    catalogue = found.items or next((list(modality.tables) for modality in modalities if modality.tables), [])
    if catalogue:
        item, item_ids, features = _by_table(catalogue, raw, modalities, given, folder)
    else:
        item, item_ids, features = _by_number(raw, modalities, found.mapping.get("item"), folder)
    user_ids, user = encode(raw.users, folder)
    if "user" in found.mapping:
        user_ids = _external_ids(user_ids, found.mapping["user"], "userID")
    mapped = [file.path for role, file in found.mapping.items() if role == "user" or not catalogue]
    tables = [file.path for file in (*raw.files, *catalogue)]
    feature_files = [path for source in features.values() for path in source.paths]
    return Inputs(
        name=found.name,
        raw=raw,
        interactions=Interactions(blocks.joined(user, folder), item, raw.split, raw.time),
        user_ids=user_ids,
        item_ids=item_ids,
        features=features,
        files=list(dict.fromkeys([*tables, *mapped, *feature_files])),
    )


def _check_names(modalities: Sequence[_Requested], raw: RawInteractions) -> None:
    names = [modality.name for modality in modalities]
    if not names:
        message = "no item features; add an items table or NAME_feat.npy, or use --features NAME=FILE"
        raise raw.files[0].error(message, code="features.missing")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            message = f"--features: {name!r} is not a modality name; use letters, digits, _ and -"
            raise InputError(message, "features.name")
        if names.count(name) > 1:
            raise InputError(f"--features: modality {name!r} occurs twice", "features.duplicate")


def _found(found: Found) -> list[_Requested]:
    """All modalities of the input, the image first and the others by name."""
    modalities = [_Requested(name, npy=path) for name, path in found.features.items()]
    for column in dict.fromkeys(c for file in found.items for c in file.names if is_feature_column(file, c)):
        for file in found.items:
            if not is_feature_column(file, column):
                message = "not a list of numbers here, but in another items table"
                raise file.error(message, column, code="features.column")
        if column in found.features:
            message = f"modality {column!r} is also in {found.features[column]}"
            raise found.items[0].error(message, column, code="features.duplicate")
        modalities.append(_Requested(column, tables=tuple(found.items), column=column))
    return sorted(modalities, key=lambda modality: (modality.name != "image", modality.name))


def _check_columns(found: Found, name: str | None = None) -> None:
    """Raises InputError for a column of numbers in a form that is not read: any, or the one called `name`."""
    for file in found.items:
        for column in file.names if name is None else [name]:
            error = refused_column(file, column)
            if error is not None:
                raise error


def parse_features(text: str) -> tuple[str, Path | None, str]:
    """Splits a `--features NAME[=FILE[:COLUMN]]` into name, file and column; the column is "" if not given."""
    name, equals, file = text.partition("=")
    if not equals:
        return name, None, ""
    path, colon, column = file.rpartition(":")
    return (name, Path(path), column) if colon and not Path(file).exists() else (name, Path(file), "")


def _requested(text: str, found: Found) -> _Requested:
    """The modality of one `--features`."""
    name, path, column = parse_features(text)
    if path is None:
        known = {modality.name: modality for modality in _found(found)}
        if name in known:
            return known[name]
        _check_columns(found, name)
        names = ", ".join(known) or "none"
        message = f"--features {name}: not among the modalities of the input ({names}); give NAME=FILE"
        raise InputError(message, "features.unknown")
    if is_matrix_file(path):
        return _Requested(name, npy=path)
    table = open_table(path)
    column = column or name
    if not is_feature_column(table, column):
        lists = ", ".join(c for c in table.names if is_feature_column(table, c)) or "none"
        why = (
            None if table.schema is None or column not in table.names else why_unusable(table.schema.field(column).type)
        )
        message = f"{why or 'not a column of lists of numbers'} (such columns: {lists}); give it as FILE:column"
        raise table.error(message, column, code="features.column")
    return _Requested(name, tables=(table,), column=column)


def _by_number(
    raw: RawInteractions, modalities: Sequence[_Requested], mapping: TableFile | None, folder: Path | None
) -> tuple[np.ndarray, pa.Array, dict[str, Source]]:
    """Catalogue without a table: the id of an item is its row in the NumPy files."""
    files = {
        modality.name: MatrixFile(modality.npy, modality.name) for modality in modalities if modality.npy is not None
    }
    first, *others = files.values()
    for other in others:
        if other.rows != first.rows:
            message = f"{other.path}: {other.rows} rows, but {first.path} has {first.rows}; an item is a row"
            raise InputError(message, "features.rows")
    ids, codes = encode(raw.items, folder)
    if pa.types.is_string(ids.type):
        text = next(column for column in raw.items if len(column))
        message = f"the ids are text, so add an items table that lists them in the order of the rows of {first.path}"
        raise text.file.error(message, text.column, code="ids.text")
    code, number = blocks.joined(codes, folder), ids.to_numpy()
    row = blocks.first(code, lambda codes: number[codes] >= first.rows)
    if row is not None:
        message = f"item {number[code[row]]} has no features: {first.path} ends with row {first.rows - 1}"
        raise raw.error("item", row, message, "features.missing")
    item = blocks.mapped(number.astype(blocks.index_type(first.rows)), code, folder)
    item_ids = pa.array(np.arange(first.rows))
    if mapping is not None:
        item_ids = _external_ids(item_ids, mapping, "itemID")
    return item, item_ids, {**files}


def _by_table(
    catalogue: Sequence[TableFile],
    raw: RawInteractions,
    modalities: Sequence[_Requested],
    given: Mapping[Role, str | None],
    folder: Path | None,
) -> tuple[np.ndarray, pa.Array, dict[str, Source]]:
    """Catalogue from tables: the index of an item is its row there; other tables match by id, NumPy files by row."""
    tables = list(dict.fromkeys([*catalogue, *(table for modality in modalities for table in modality.tables)]))
    columns = [_item_ids(table, given) for table in tables]
    ids, codes = encode([*raw.items, *columns], folder)
    code = blocks.joined(codes[: len(raw.items)], folder)
    entry_of = dict(zip(tables, codes[len(raw.items) :], strict=True))
    for column, entry in zip(columns, entry_of.values(), strict=True):
        check_unique(column, ids, entry)
    entries = np.concatenate([entry_of[table] for table in catalogue])
    position = np.full(len(ids), -1)
    position[entries] = np.arange(len(entries))
    listing = ", ".join(str(table.path) for table in catalogue)
    listed = np.bincount(entries, minlength=len(ids))
    if listed.max() > 1:
        item = ids[int(listed.argmax())].as_py()
        raise InputError(f"{listing}: item {item!r} is in two of these items tables", "ids.duplicate")
    row = blocks.first(code, lambda codes: position[codes] < 0)
    if row is not None:
        message = f"item {ids[int(code[row])].as_py()!r} has no features: it is not in {listing}"
        raise raw.error("item", row, message, "features.missing")

    features: dict[str, Source] = {}
    for modality in modalities:
        if modality.npy is not None:
            source = MatrixFile(modality.npy, modality.name)
            if source.rows != len(entries):
                message = f"{modality.npy}: {source.rows} rows, but {listing} has {len(entries)} items"
                raise InputError(message, "features.rows")
            features[modality.name] = source
            continue
        rows = np.concatenate([position[entry_of[table]] for table in modality.tables])
        table = modality.tables[0]
        if len(rows) and rows.min() < 0:
            row = int(np.flatnonzero(rows < 0)[0])
            message = f"item {ids[int(entry_of[table][row])].as_py()!r} is not in {listing}"
            raise table.error(message, _item_ids(table, given).column, row, code="features.rows")
        features[modality.name] = ListColumn(modality.tables, modality.column, rows)
    item = blocks.mapped(position.astype(blocks.index_type(len(entries))), code, folder)
    return item, ids.take(pa.array(entries)), features


def _item_ids(table: TableFile, given: Mapping[Role, str | None]) -> IdColumn:
    column = item_column(table, given)
    if column is None:
        raise missing_column(table, "item", given)
    return IdColumn.read(table, column)


def _external_ids(numbers: pa.Array, mapping: TableFile, index: str) -> pa.Array:
    """The ids that a mapping file of MMRec gives to `numbers`, in their order."""
    others = [name for name in mapping.names if name != index]
    if index not in mapping.names or len(others) != 1:
        message = f"expected column {index!r} and one with the external ids, not {', '.join(mapping.names)}"
        raise mapping.error(message, code="mapping.columns")
    columns = [IdColumn.read(mapping, name) for name in (index, others[0])]
    (known, (position,)), (external, (code,)) = (encode([column]) for column in columns)
    check_unique(columns[0], known, position)
    check_unique(columns[1], external, code)
    if not pa.types.is_integer(known.type) or not pa.types.is_integer(numbers.type):
        message = "maps numbers to external ids, but there is text among the numbers"
        raise mapping.error(message, index, code="mapping.text")
    found = pc.index_in(numbers, value_set=known)
    if found.null_count:
        absent = numbers.filter(pc.is_null(found))[0].as_py()
        raise mapping.error(f"{absent} is not in it", index, code="mapping.incomplete")
    row = np.empty(len(position), np.int64)
    row[position] = np.arange(len(position))
    return external.take(pa.array(code[row[found.to_numpy()]]))
