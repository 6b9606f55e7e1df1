"""Reads items and users that training never saw: items by their features, users by the items they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cm3_dist.errors import InputError
from cm3_dist.inference.id_tables import IdColumn, id_column, read_column, read_pairs
from cm3_dist.inference.trained_model import TrainedModel
from partition.folder import layout
from partition.folder.arrays import open_basis
from partition.folder.manifest import Modality
from partition.options import SPECTRAL, Missing, missing_choices
from partition.read.feature_sources import ListColumn, MatrixFile, is_feature_column, refused_column
from partition.read.features import Matrices
from partition.read.places import place_of
from partition.read.table_file import TableFile, is_table, open_table
from partition.transform.pca import BLOCK_BYTES, project


@dataclass(frozen=True)
class NewFeatures:
    """Items that training never saw, with their features."""

    ids: pa.Array  # [n] external ids
    features: dict[str, np.ndarray]  # modality -> [n, d_m] in the dtype of the prepared folder
    missing: dict[str, np.ndarray]  # modality -> [n] bool: rows that the model leaves out; only with any


@dataclass(frozen=True)
class NewUsers:
    """Users that training never saw, as a list of (user, item) pairs."""

    ids: pa.Array  # [n] external ids, in the order in which they first occur in the file
    owner: np.ndarray  # [e] int64 position in `ids`; each pair occurs once
    item: np.ndarray  # [e] int64 global item row; from `manifest.item_rows` on, a position among the new items


def read_new_items(path: Path, model: TrainedModel, work: Path) -> NewFeatures:
    """Reads the ids and features of new items.

    Missing rows are treated as the catalogue's were (`--missing` at preparation) if that was `zeros` or `mask`.

    Args:
        path: a table (Parquet or Arrow) with an item column and one list column per modality, or a folder with a table
            of items and NAME_feat.npy files in the order of its rows.
        model: for its modalities and ids.
        work: folder for temporary files, which must exist as long as the features are used.

    Raises:
        InputError: a modality is missing or has another width, a value is not finite, features of an item are missing
            and there is no choice that says what becomes of it, an id occurs twice or is in the catalogue.
    """
    table = _items_table(path)
    listed = read_column(table, id_column(table, "item"), model.item_ids)
    _check_new(listed)
    count, modalities = len(listed.ids), model.manifest.modalities
    choices = missing_choices(model.manifest.settings.get("missing", []), [modality.name for modality in modalities])
    features, missing = {}, {}
    for modality in modalities:
        name = modality.name
        source = _feature_source(path, table, name, count)
        if source is None:  # spectral features are computed from interactions, which new items do not have
            features[name] = np.zeros((count, modality.dim), modality.dtype)
            continue
        found = Matrices({name: source}, count, work)[name]
        features[name] = _as_prepared(found.values, modality, model.shard.root, source.paths[0])
        if found.missing is not None:
            if choices[name] not in (Missing.ZEROS, Missing.MASK):
                raise _no_features(name, found.missing, found.place, choices[name])
            if choices[name] == Missing.MASK:
                missing[name] = found.missing
    return NewFeatures(listed.ids, features, missing)


def _no_features(name: str, missing: np.ndarray, place: Callable[[int], str | None], choice: Missing) -> InputError:
    count, first = int(missing.sum()), place(int(np.argmax(missing)))
    have = "has" if count == 1 else "have"
    message = f"{count:,} of {len(missing):,} new items {have} no {name}; first: {first}"
    remedy = f"prepare the data with --missing {name}=mask or zeros, not {choice}, and train again"
    return InputError(f"{message}; {remedy}", "features.missing")


def _feature_source(path: Path, table: TableFile, name: str, count: int) -> MatrixFile | ListColumn | None:
    """Where the features of a modality are; None for spectral features that are not given."""
    npy = path / f"{name}_feat.npy"
    for file in (npy, npy.with_suffix(".npz")) if path.is_dir() else ():
        if file.exists():
            source = MatrixFile(file, name)
            if source.rows != count:
                message = f"{file}: {source.rows} rows, but {table.path} has {count} items"
                raise InputError(message, "new_items.features")
            return source
    refused = refused_column(table, name)
    if refused is not None:
        raise refused
    if is_feature_column(table, name):
        return ListColumn((table,), name, np.arange(count))
    if name == SPECTRAL:
        return None
    message = f"no features of modality {name!r}: give a list column of that name, or {npy.name}"
    raise table.error(message, code="new_items.features")


def read_new_users(path: Path, model: TrainedModel, new_items: pa.Array | None) -> NewUsers:
    """Reads a table with a user and an item column, one row per interaction; repeated rows count once.

    Raises:
        InputError: an item is unknown, or a user has training interactions and therefore an embedding of their own.
    """
    listed, liked = read_pairs(path, model.user_ids, model.item_ids)
    item = rows_with_new(model, liked, new_items)
    ids = listed.ids.unique()
    owner = pc.index_in(listed.ids, value_set=ids).to_numpy()
    trained = np.flatnonzero(_degree(model, model.user_ids.find(ids)) > 0)
    if len(trained):
        name, row = ids[int(trained[0])].as_py(), int(np.argmax(owner == trained[0]))
        message = f"{name!r} has training interactions and a row of their own; ask with --users"
        raise listed.error(message, "new_users.trained", row)
    pairs = np.unique(np.stack([owner, item], axis=1), axis=0)
    return NewUsers(ids, pairs[:, 0], pairs[:, 1])


def rows_with_new(model: TrainedModel, listed: IdColumn, new: pa.Array | None) -> np.ndarray:
    """Global rows of item ids; from `manifest.item_rows` on they are positions among the ids `new`.

    Raises:
        InputError: an id is neither in the catalogue nor new; the message names file and row.
    """
    rows = listed.find()
    if new is not None:
        position = pc.index_in(listed.ids, value_set=new).fill_null(-1).to_numpy()
        rows = np.where(position >= 0, position + model.manifest.item_rows, rows)
    listed.require_known(rows >= 0)
    return rows


def _as_prepared(values: np.ndarray, modality: Modality, root: Path, path: Path) -> np.ndarray:
    """Features as wide as those of the prepared folder; those as wide as its input are reduced by the same basis."""
    width, basis_file = values.shape[1], root / layout.basis_file(modality.name)
    if width != modality.dim and width == modality.source_dim and basis_file.is_file():
        basis = open_basis(basis_file, modality)
        rows = max(1, BLOCK_BYTES // (8 * width))
        blocks = [project(values[begin : begin + rows], basis) for begin in range(0, len(values), rows)]
        return np.concatenate([block.astype(modality.dtype) for block in blocks])
    if width != modality.dim:
        wanted = f"{modality.dim}"
        if modality.source_dim != modality.dim:
            wanted += f", reduced from {modality.source_dim}"
            if not basis_file.is_file():
                wanted += ", by a basis that was not kept"
        message = f"{path}: modality {modality.name!r} is {width} wide; the data has {wanted}"
        raise InputError(message, "new_items.width")
    return values.astype(modality.dtype, copy=False)


def _items_table(path: Path) -> TableFile:
    if not path.is_dir():
        return open_table(path)
    tables = [file for file in sorted(path.iterdir()) if is_table(place_of(file))]
    if len(tables) != 1:
        message = f"{path}: {len(tables)} tables in it; new items are one table, and NAME_feat.npy beside it"
        raise InputError(message, "new_items.tables")
    return open_table(tables[0])


def _check_new(listed: IdColumn) -> None:
    """Raises InputError if an id is in the catalogue or occurs twice."""
    known = listed.find() >= 0
    if known.any():
        row = int(np.argmax(known))
        raise listed.error(f"{listed.ids[row].as_py()!r} is in the catalogue already", "new_items.known", row)
    distinct = listed.ids.unique()  # in the order of their first rows
    first = pc.index_in(distinct, value_set=listed.ids).to_numpy()
    if len(first) < len(listed.ids):
        row = int(np.setdiff1d(np.arange(len(listed.ids)), first)[0])
        raise listed.error(f"{listed.ids[row].as_py()!r} a second time", "ids.duplicate", row)


def _degree(model: TrainedModel, rows: np.ndarray) -> np.ndarray:
    """Training interactions of global user rows [n]; 0 where the row is -1."""
    degree = np.zeros(len(rows), np.int64)
    part, offset = np.divmod(rows, model.manifest.user_stride)
    for number in np.unique(part[rows >= 0]):
        own = (part == number) & (rows >= 0)
        degree[own] = model.user_ids.part(int(number))["train_degree"].to_numpy()[offset[own]]
    return degree
