"""The interactions and features of a prepared folder as tables, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from partition import columns_on_disk as blocks
from partition.errors import InputError
from partition.folder.read_dataset import PreparedFolder

FEATURE_BYTES = 1 << 24  # of a block of feature rows


@dataclass(frozen=True)
class Target:
    """Where an export goes."""

    folder: Path  # to write to; it takes the name `output` when it is complete
    output: Path
    name: str  # of the data set


@dataclass(frozen=True)
class Block:
    """Consecutive interactions, sorted by user and item."""

    user: np.ndarray  # [n] number of the user
    item: np.ndarray  # [n] number of the item
    split: np.ndarray  # [n] TRAIN, VALIDATION or TEST
    weight: np.ndarray | None  # [n] float32; 1 where held out; None if there are no weights


def interactions(source: PreparedFolder, scratch: Path) -> Iterator[Block]:
    """Yields all interactions in blocks; `scratch` is a folder for unnamed files."""
    user, item, split, weight = source.interactions(scratch)
    whole = list(blocks.slices(len(user)))
    for rows in tqdm(whole, desc="writing interactions", unit="block", disable=None, leave=False):
        yield Block(user[rows], item[rows], split[rows], None if weight is None else weight[rows])


def features(source: PreparedFolder, scratch: Path) -> dict[str, np.ndarray]:
    """Returns the features of all modalities [items, dim] by number of the item, in unnamed files in `scratch`."""
    found, items = {}, source.manifest.items
    for modality in source.manifest.modalities:
        column = blocks.column(items * modality.dim, np.dtype(modality.dtype), scratch)
        found[modality.name] = column.reshape(items, modality.dim)
        source.copy_features(modality, found[modality.name])
    return found


def masks(source: PreparedFolder) -> dict[str, np.ndarray]:
    """Returns which items have no features [items] bool, by modality, of the modalities with masks."""
    found = {modality.name: source.missing(modality) for modality in source.manifest.modalities}
    return {name: missing for name, missing in found.items() if missing is not None}


def zeros_for(source: PreparedFolder) -> list[str]:
    """Returns the lines about masks, which a format cannot hold: it has the rows of zeros."""
    return [
        f"not in it: which {np.count_nonzero(missing):,} items have no {name}; their rows are zeros"
        for name, missing in masks(source).items()
    ]


def item_slices(matrices: dict[str, np.ndarray]) -> Iterator[slice]:
    """Yields slices that cover all items in order, of bounded size over all modalities."""
    items = len(next(iter(matrices.values())))
    size = max(1, FEATURE_BYTES // sum(values.itemsize * values.shape[1] for values in matrices.values()))
    whole = [slice(begin, min(begin + size, items)) for begin in range(0, items, size)]
    return iter(tqdm(whole, desc="writing items", unit="block", disable=None, leave=False))


def as_text(ids: pa.Array) -> pa.Array:
    """Returns ids as text."""
    return ids.cast(pa.string()) if pa.types.is_integer(ids.type) else ids


def refuse_ids(source: PreparedFolder, wrong: Callable[[pa.Array], pa.Array], why: str) -> None:
    """Refuses text ids that a format cannot hold.

    Args:
        source: the folder.
        wrong: returns which of an array of text ids those are.
        why: the end of the message.

    Raises:
        InputError: `export.ids`; it has the number of these ids and the first.
    """
    for kind, ids in source.ids.items():
        if pa.types.is_integer(ids.type):
            continue
        found = ids.filter(wrong(ids))
        if len(found):
            message = f"{len(found):,} of {len(ids):,} {kind} ids {why}; first: {found[0].as_py()!r}"
            raise InputError(f"{source.root}: {message}; use --format parquet", "export.ids")


def contains(texts: Sequence[str]) -> Callable[[pa.Array], pa.Array]:
    """Returns a function that says which ids contain one of `texts`, each of one character."""
    pattern = "[" + "".join(texts) + "]"
    return lambda ids: pc.match_substring_regex(ids, pattern)


def idle_users(source: PreparedFolder) -> list[str]:
    """Returns the line about users that are in no interaction, and so in no file; held-out ones have training, too."""
    count = sum(part.users - part.active_users for part in source.manifest.parts)
    return [f"not in it: {count:,} users without an interaction"] if count else []
