"""How made-up data is written: Parquet in row groups, under a temporary name until it is whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from partition.errors import InputError
from partition.files import atomic_file

INTERACTIONS, ITEMS = "interactions.parquet", "items.parquet"
ROW_GROUP = 1 << 20  # interactions, about
ITEM_GROUP = 1 << 14
BEGIN, SPAN = 1_577_836_800, 2 * 365 * 86_400  # timestamps: two years from 2020 on
INTERACTION_SCHEMA = pa.schema([("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64())])


@dataclass(frozen=True)
class Width:
    """Columns and dtype of a modality that is made."""

    dim: int
    dtype: str = "float32"


def parse_modalities(text: str) -> dict[str, Width]:
    """Reads `NAME:DIM[:float16|float32],...`.

    Raises:
        InputError: anything else, or a name twice.
    """
    modalities: dict[str, Width] = {}
    for entry in text.split(","):
        match = re.fullmatch(r"([A-Za-z0-9_-]+):([1-9][0-9]*)(?::(float16|float32))?", entry.strip())
        if match is None or match[1] in modalities:
            raise InputError(f"--modalities {text}: {entry.strip()!r}: expected NAME:DIM[:float16], each name once")
        modalities[match[1]] = Width(int(match[2]), match[3] or "float32")
    return modalities


@contextmanager
def new_tables(output: Path, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """Temporary paths of the interactions and the items in `output`; both get their names when the block ends well.

    Raises:
        InputError: one is there already.
    """
    targets = output / INTERACTIONS, output / ITEMS
    for target in targets:
        if target.exists() and not overwrite:
            raise InputError(f"{target}: exists already; add --overwrite to replace it")
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(targets[0]) as interactions, atomic_file(targets[1]) as items:
        yield interactions, items


def item_schema(modalities: Mapping[str, Width]) -> pa.Schema:
    """Column `item`, and a list column per modality."""
    kinds = {name: pa.list_(pa.type_for_alias(width.dtype), width.dim) for name, width in modalities.items()}
    return pa.schema([("item", pa.string()), *kinds.items()])


def item_table(schema: pa.Schema, ids: pa.Array, features: Sequence[np.ndarray]) -> pa.Table:
    """Ids [n] and the modalities' rows [n, dim], in the order of the schema, cast to its dtypes."""
    columns = [ids]
    for field, values in zip(list(schema)[1:], features, strict=True):
        flat = pa.array(values.astype(field.type.value_type.to_pandas_dtype()).ravel())
        columns.append(pa.FixedSizeListArray.from_arrays(flat, type=field.type))
    return pa.table(columns, schema)


def numbered(kind: str, number: np.ndarray, count: int) -> pa.Array:
    """Ids such as user-000123, of the numbers [n] below `count`."""
    digits = pc.utf8_lpad(pa.array(number).cast(pa.string()), max(6, len(str(count - 1))), "0")
    return pc.binary_join_element_wise(kind, digits, "-")
