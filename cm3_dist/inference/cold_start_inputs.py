"""Reads items and users that the prepared folder does not have: features of the ones, items of the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cm3_dist.errors import InputError
from cm3_dist.inference.id_map import OwnIds
from cm3_dist.inference.id_tables import IdFile, id_column, read_column, read_pairs
from cm3_dist.inference.trained_model import FinishedRun
from partition.folder import layout
from partition.folder.arrays import open_basis
from partition.folder.manifest import Modality
from partition.options import SPECTRAL
from partition.read.features import BLOCK_BYTES, ListColumn, NpyFile, is_feature_column, load, project
from partition.read.table_file import SUFFIXES, TableFile, open_table


@dataclass(frozen=True)
class NewUsers:
    """Users by the items they have."""

    ids: pa.Array  # [n] own ids, in the order in which the file first names them
    owner: np.ndarray  # [e] int64 position in `ids`; a pair occurs once
    item: np.ndarray  # [e] int64 global item row, or from `manifest.item_rows` on a position among the new items


def read_new_items(path: Path, run: FinishedRun, work: Path) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """Ids and features of new items.

    Args:
        path: a table (Parquet or Arrow) with an item column and a list column a modality, or a folder with a table of
            items and NAME_feat.npy files, whose rows are those of the table.
        run: for its modalities and ids.
        work: folder for matrices; has to stay as long as the features are used.

    Returns:
        Ids [n] in the data's type, and modality -> [n, d_m] in the data's dtype.

    Raises:
        InputError: a modality is missing or of another width, a value is not finite, an id occurs twice or is in the
            catalogue already.
    """
    table = _items_table(path)
    own = OwnIds(run.shard.root, run.manifest, "item")
    listed = read_column(table, id_column(table, "item"), own)
    _check_new(listed, own)
    count, features = len(listed.ids), {}
    for modality in run.manifest.modalities:
        npy = path / f"{modality.name}_feat.npy"
        source: NpyFile | ListColumn
        if path.is_dir() and npy.exists():
            source = NpyFile(npy)
            if source.rows != count:
                raise InputError(f"{npy}: {source.rows} rows, but {table.path} has {count} items")
        elif is_feature_column(table, modality.name):
            source = ListColumn((table,), modality.name, np.arange(count))
        elif modality.name == SPECTRAL:  # it is made of interactions, which they have none of
            features[SPECTRAL] = np.zeros((count, modality.dim), modality.dtype)
            continue
        else:
            raise table.error(
                f"no features of modality {modality.name!r}: give a list column of that name, or {npy.name}"
            )
        values = load({modality.name: source}, count, None, {}, work)[0][modality.name].values
        features[modality.name] = _as_prepared(values, modality, run.shard.root, source.paths[0])
    return listed.ids, features


def read_new_users(path: Path, run: FinishedRun, new_items: pa.Array | None) -> NewUsers:
    """Users of a table with a user and an item column, one row an interaction; repeated rows count once.

    Raises:
        InputError: an unknown item, or a user who has training interactions and thus a row of their own.
    """
    users = OwnIds(run.shard.root, run.manifest, "user")
    listed, liked = read_pairs(path, users, OwnIds(run.shard.root, run.manifest, "item"))
    item = rows_with_new(run, liked, new_items)
    ids = listed.ids.unique()
    owner = pc.index_in(listed.ids, value_set=ids).to_numpy()
    known = users.find(ids)
    trained = np.flatnonzero((known >= 0) & (_degree(users, known, run) > 0))
    if len(trained):
        row = int(np.argmax(owner == trained[0]))
        raise listed.file.error(
            f"{ids[int(trained[0])].as_py()!r} has training interactions and a row of their own; ask with --users",
            listed.column,
            row,
        )
    pairs = np.unique(np.stack([owner, item], axis=1), axis=0)
    return NewUsers(ids, pairs[:, 0], pairs[:, 1])


def rows_with_new(run: FinishedRun, listed: IdFile, new: pa.Array | None) -> np.ndarray:
    """Global rows of item ids; from `manifest.item_rows` on they are positions among the ids `new`.

    Raises:
        InputError: an id that is neither in the catalogue nor new, by file and row.
    """
    rows = listed.rows(OwnIds(run.shard.root, run.manifest, "item"))
    if new is not None:
        place = pc.index_in(listed.ids, value_set=new).fill_null(-1).to_numpy()
        rows = np.where(place >= 0, place + run.manifest.item_rows, rows)
    if (rows < 0).any():
        raise listed.unknown(int(np.argmax(rows < 0)), "item")
    return rows


def _as_prepared(values: np.ndarray, modality: Modality, root: Path, path: Path) -> np.ndarray:
    """Rows as wide as the prepared folder's, by the basis that it was reduced with if they are as wide as its input."""
    width, basis_file = values.shape[1], root / layout.basis_file(modality.name)
    if width != modality.dim and width == modality.source_dim and basis_file.is_file():
        basis = open_basis(basis_file, modality)
        rows = max(1, BLOCK_BYTES // (8 * width))
        blocks = [project(values[begin : begin + rows], basis) for begin in range(0, len(values), rows)]
        return np.concatenate([block.astype(modality.dtype) for block in blocks])
    if width != modality.dim:
        wanted = f"{modality.dim}"
        if modality.source_dim != modality.dim:
            wanted += f", reduced from {modality.source_dim}" + (
                "" if basis_file.is_file() else ", by a basis not kept"
            )
        raise InputError(f"{path}: modality {modality.name!r} is {width} wide; the data has {wanted}")
    return values.astype(modality.dtype, copy=False)


def _items_table(path: Path) -> TableFile:
    if not path.is_dir():
        return open_table(path)
    tables = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES - {".txt"}]
    if len(tables) != 1:
        raise InputError(f"{path}: {len(tables)} tables in it; new items are one table, and NAME_feat.npy beside it")
    return open_table(tables[0])


def _check_new(listed: IdFile, own: OwnIds) -> None:
    rows = listed.rows(own)
    if (rows >= 0).any():
        row = int(np.argmax(rows >= 0))
        raise listed.file.error(f"{listed.ids[row].as_py()!r} is in the catalogue already", listed.column, row)
    first = pc.index_in(listed.ids, value_set=listed.ids.unique()).to_numpy()
    repeated = np.flatnonzero(first < np.maximum.accumulate(np.concatenate([[-1], first[:-1]])) + 1)
    if len(repeated):
        row = int(repeated[0])
        raise listed.file.error(f"{listed.ids[row].as_py()!r} a second time", listed.column, row)


def _degree(users: OwnIds, rows: np.ndarray, run: FinishedRun) -> np.ndarray:
    """Training interactions of global user rows [n]; 0 where the row is -1."""
    degree = np.zeros(len(rows), np.int64)
    part, offset = np.divmod(rows, run.manifest.user_stride)
    for number in np.unique(part[rows >= 0]):
        own = (part == number) & (rows >= 0)
        degree[own] = users.part(int(number))["train_degree"].to_numpy()[offset[own]]
    return degree
