"""The catalogue: the ids of all items in the order of the feature rows, and a source for each feature row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition.errors import InputError
from partition.read.feature_rows import FLAG, has_flags
from partition.read.feature_sources import (
    ListColumn,
    MatrixFile,
    Source,
    is_feature_column,
    is_matrix_file,
    refused_column,
)
from partition.read.feature_types import why_unusable
from partition.read.ids import IdColumn, IdKind, are_numbers
from partition.read.places import Place, place_of
from partition.read.sources import Found, Role, item_column, missing_column
from partition.read.table_file import TableFile, open_table


@dataclass(frozen=True)
class Catalogue:
    """All items."""

    keys: pa.Array  # [items] int64 or large_string: their ids in the logs, in the order of the feature rows
    ids: pa.Array  # [items] int64 or large_string: their external ids; others than the keys if there is a mapping
    features: dict[str, Source]  # in the order of the control points of the curve
    files: list[Place]  # all that were read
    used: dict[TableFile, list[str]]  # the tables, and their columns that were read
    end: str  # why another item has no features: "not in items.csv"


@dataclass(frozen=True)
class _Requested:
    """A modality before its rows are matched with items: a NumPy file, or a list column of tables."""

    name: str
    npy: Path | None = None
    tables: tuple[TableFile, ...] = ()
    column: str = ""


def resolve(
    found: Found,
    logged: Sequence[IdKind],
    requested: Sequence[str],
    given: Mapping[Role, str | None],
) -> Catalogue:
    """Finds the items, and the rows of every modality.

    The catalogue is the items table if there is one; else the table of the first modality that is in a table; else the
    rows of the NumPy files, whose row number is then the id of the item. Items without an interaction stay in it.

    Args:
        found: the files.
        logged: the item ids of every log.
        requested: modalities in order, as `NAME` (one that was found) or `NAME=FILE[:column]`; empty for all that were
            found, the image first and the others by name.
        given: names of the columns, where they were given.

    Raises:
        InputError: no modality, feature rows that do not match the items, ids that are numbers in one table and text
            in another.
    """
    if not requested:
        _check_columns(found)
    modalities = [_requested(text, found) for text in requested] or _found(found)
    _check_names(modalities, found)
    tables = found.items or next((list(modality.tables) for modality in modalities if modality.tables), [])
    if tables:
        keys, end, features = _by_table(tables, logged, modalities, given)
        used = {table: [_item_column(table, given)] for table in tables}
        for modality in modalities:
            for table in modality.tables:
                used.setdefault(table, [_item_column(table, given)]).append(modality.column)
                if has_flags(table):
                    used[table].append(FLAG)
        ids = keys
    else:
        keys, end, features = _by_number(logged, modalities)
        mapping = found.mapping.get("item")
        ids = keys if mapping is None else external_ids(keys, mapping, "itemID")
        used = {} if mapping is None else {mapping: list(mapping.names)}
    known = {table.path for table in used}  # in object storage a path is only a name
    paths = [place_of(path) for source in features.values() for path in source.paths if path not in known]
    return Catalogue(keys, ids, features, [*(table.place for table in used), *paths], used, end)


def _check_names(modalities: Sequence[_Requested], found: Found) -> None:
    names = [modality.name for modality in modalities]
    if not names:
        message = "no item features; add an items table or NAME_feat.npy, or use --features NAME=FILE"
        raise found.interactions[0].error(message, code="features.missing")
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


def _by_number(logged: Sequence[IdKind], modalities: Sequence[_Requested]) -> tuple[pa.Array, str, dict[str, Source]]:
    """Catalogue without a table: the id of an item is its row in the NumPy files."""
    files = {
        modality.name: MatrixFile(modality.npy, modality.name) for modality in modalities if modality.npy is not None
    }
    first, *others = files.values()
    for other in others:
        if other.rows != first.rows:
            message = f"{other.path}: {other.rows} rows, but {first.path} has {first.rows}; an item is a row"
            raise InputError(message, "features.rows")
    if not are_numbers(logged):
        text = next(kind for kind in logged if not kind.numeric)
        message = f"the ids are text, so add an items table that lists them in the order of the rows of {first.path}"
        raise text.file.error(message, text.column, code="ids.text")
    return pa.array(np.arange(first.rows)), f"{first.path} ends with row {first.rows - 1}", {**files}


def _by_table(
    catalogue: Sequence[TableFile],
    logged: Sequence[IdKind],
    modalities: Sequence[_Requested],
    given: Mapping[Role, str | None],
) -> tuple[pa.Array, str, dict[str, Source]]:
    """Catalogue from tables: the index of an item is its row there; other tables match by id, NumPy files by row."""
    tables = dict.fromkeys([*catalogue, *(table for modality in modalities for table in modality.tables)])
    columns = {table: IdColumn.read(table, _item_column(table, given)) for table in tables}
    numbers = are_numbers([*logged, *(column.kind for column in columns.values())])
    ids = {table: column.of_kind(numbers) for table, column in columns.items()}
    for column in columns.values():
        column.check_unique()
    keys = pa.concat_arrays([ids[table] for table in catalogue])
    listing = ", ".join(table.place.name for table in catalogue)
    codes = keys.dictionary_encode()
    listed = np.bincount(codes.indices.to_numpy(), minlength=1)
    if listed.max() > 1:
        item = codes.dictionary[int(listed.argmax())].as_py()
        raise InputError(f"{listing}: item {item!r} is in two of these items tables", "ids.duplicate")

    features: dict[str, Source] = {}
    for modality in modalities:
        if modality.npy is not None:
            source = MatrixFile(modality.npy, modality.name)
            if source.rows != len(keys):
                message = f"{modality.npy}: {source.rows} rows, but {listing} has {len(keys)} items"
                raise InputError(message, "features.rows")
            features[modality.name] = source
            continue
        own = pa.concat_arrays([ids[table] for table in modality.tables])
        places, table = pc.index_in(own, value_set=keys), modality.tables[0]
        if places.null_count:
            row = int(np.flatnonzero(places.is_null().to_numpy(zero_copy_only=False))[0])
            message = f"item {own[row].as_py()!r} is not in {listing}"
            raise table.error(message, columns[table].kind.column, row, code="features.rows")
        rows = places.to_numpy()
        features[modality.name] = ListColumn(modality.tables, modality.column, rows)
    return keys, f"not in {listing}", features


def _item_column(table: TableFile, given: Mapping[Role, str | None]) -> str:
    column = item_column(table, given)
    if column is None:
        raise missing_column(table, "item", given)
    return column


def external_ids(numbers: pa.Array, mapping: TableFile, index: str) -> pa.Array:
    """The ids that a mapping file of MMRec gives to `numbers`, in their order.

    Raises:
        InputError: other columns than `index` and one more, an id that it lists twice, text among the numbers, or a
            number that it lacks.
    """
    others = [name for name in mapping.names if name != index]
    if index not in mapping.names or len(others) != 1:
        message = f"expected column {index!r} and one with the external ids, not {', '.join(mapping.names)}"
        raise mapping.error(message, code="mapping.columns")
    known, external = (IdColumn.read(mapping, name) for name in (index, others[0]))
    known.check_unique()
    external.check_unique()
    if not known.kind.numeric or not pa.types.is_integer(numbers.type):
        message = "maps numbers to external ids, but there is text among the numbers"
        raise mapping.error(message, index, code="mapping.text")
    row = pc.index_in(numbers, value_set=known.values)
    if row.null_count:
        absent = numbers.filter(pc.is_null(row))[0].as_py()
        raise mapping.error(f"{absent} is not in it", index, code="mapping.incomplete")
    return external.values.take(row)
