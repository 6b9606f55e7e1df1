"""How generated data is written: Parquet in row groups, under a temporary name until it is complete."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition.errors import InputError
from partition.files import atomic_file
from partition.synthetic.options import Width

INTERACTIONS, ITEMS = "interactions.parquet", "items.parquet"
ROW_GROUP = 1 << 20  # interactions, about
ITEM_GROUP = 1 << 14
BEGIN, SPAN = 1_577_836_800, 2 * 365 * 86_400  # timestamps: two years from 2020 on
INTERACTION_SCHEMA = pa.schema([("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64())])


@contextmanager
def new_tables(output: Path, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Temporary paths of the interactions and the items in `output`, renamed when the block ends without an error.

    Raises:
        InputError: one of the files exists already.
    """
    targets = output / INTERACTIONS, output / ITEMS
    for target in targets:
        if target.exists() and not overwrite:
            raise InputError(f"{target}: exists already; add --overwrite to replace it", "output.exists")
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(targets[0]) as interactions, atomic_file(targets[1]) as items:
        yield interactions, items


def item_schema(modalities: Mapping[str, Width]) -> pa.Schema:
    """Column `item`, and a list column per modality."""
    kinds = {name: pa.list_(pa.type_for_alias(width.dtype), width.dim) for name, width in modalities.items()}
    return pa.schema([("item", pa.string()), *kinds.items()])


def item_table(schema: pa.Schema, ids: pa.Array, features: Sequence[np.ndarray]) -> pa.Table:
    """A table of ids [n] and the rows [n, dim] of the modalities, in the order of the schema and cast to its dtypes."""
    columns = [ids]
    for field, values in zip(list(schema)[1:], features, strict=True):
        flat = pa.array(values.astype(field.type.value_type.to_pandas_dtype()).ravel())
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
    return pa.table(columns, schema)


def numbered(kind: str, number: np.ndarray, count: int) -> pa.Array:
    """[n] ids such as user-000123 for the numbers [n], which are below `count`."""
    digits = pc.utf8_lpad(pa.array(number).cast(pa.string()), max(6, len(str(count - 1))), "0")
    return pc.binary_join_element_wise(kind, digits, "-")
