"""Export as Parquet: one file per split and one of the items, in external ids.

`python -m partition build` reads the folder again, with the same split, the same order of users and items, and the same
features.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from partition.export.rows import Target, features, idle_users, interactions, item_slices, masks
from partition.folder.read_dataset import PreparedFolder
from partition.transform.dataset import TEST, TRAIN, VALIDATION

FILES = {TRAIN: "train.parquet", VALIDATION: "validation.parquet", TEST: "test.parquet"}


def write(source: PreparedFolder, target: Target) -> list[str]:
    """Writes the files; returns lines for the user.

    - `train.parquet`, `validation.parquet`, `test.parquet`: `user_id`, `item_id` and, if there are
      weights, `weight`, 1 where held out; sorted by user and item.
    - `items.parquet`: `item_id` and one list column per modality; in the order in which items were numbered. Where a
      modality has masks, the list is null for items without such features, and `missing_MODALITY` is true.
    """
    _write_interactions(source, target)
    _write_items(source, target)
    chosen = [f"--features {modality.name}" for modality in source.manifest.modalities]
    chosen += ["--weight-column weight"] if source.manifest.weighted else []
    command = f"python -m partition build --input {target.output} {' '.join(chosen)} ..."
    return [*idle_users(source), f"read it with: {command}"]


def _write_interactions(source: PreparedFolder, target: Target) -> None:
    user_ids, item_ids = source.ids["user"], source.ids["item"]
    weight = [("weight", pa.float32())] if source.manifest.weighted else []
    schema = pa.schema([("user_id", user_ids.type), ("item_id", item_ids.type), *weight])
    with ExitStack() as stack:
        files = {
            label: stack.enter_context(pq.ParquetWriter(target.folder / name, schema)) for label, name in FILES.items()
        }
        for block in interactions(source, target.folder):
            for label, file in files.items():
                rows = np.flatnonzero(block.split == label)
                columns = [user_ids.take(pa.array(block.user[rows])), item_ids.take(pa.array(block.item[rows]))]
                columns += [] if block.weight is None else [pa.array(block.weight[rows])]
                file.write_table(pa.table(columns, schema=schema))


def _write_items(source: PreparedFolder, target: Target) -> None:
    matrices, ids = features(source, target.folder), source.ids["item"]
    lists = [(name, pa.list_(pa.from_numpy_dtype(values.dtype), values.shape[1])) for name, values in matrices.items()]
    missing = masks(source)
    schema = pa.schema([("item_id", ids.type), *lists, *((f"missing_{name}", pa.bool_()) for name in missing)])
    with pq.ParquetWriter(target.folder / "items.parquet", schema) as file:
        for rows in item_slices(matrices):
            columns = [ids[rows.start : rows.stop]]
            for name, values in matrices.items():
                block, absent = values[rows], pa.array(missing[name][rows]) if name in missing else None
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), block.shape[1], mask=absent))
            columns += [pa.array(mask[rows]) for mask in missing.values()]
            file.write_table(pa.table(columns, schema=schema))
