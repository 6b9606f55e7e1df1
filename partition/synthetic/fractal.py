"""Grows a real data set to any size while keeping its structure: a fractal expansion, one block at a time.

After Belletti et al., "Scalable Realistic Recommendation Datasets through Fractal Expansions" (arXiv 1901.08910):
every user and item is repeated. For each interaction of a user, a small self-similar matrix (the Kronecker power of a
2 x 2 matrix) chooses the repetition of its item. Within a block, users like the same items as in the real data; between
blocks, a power law and nested communities are added. The features of a repeated item are those of the original, reduced
to the requested width, plus an offset per block and noise per item.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from partition.errors import InputError
from partition.options import BuildOptions
from partition.stages import Stages
from partition.synthetic.options import SyntheticOptions, Width
from partition.synthetic.tables import (
    BEGIN,
    INTERACTION_SCHEMA,
    INTERACTIONS,
    ITEM_GROUP,
    ITEMS,
    SPAN,
    item_schema,
    item_table,
    new_tables,
)
from partition.transform.dataset import Dataset

# P(bit of the column | bit of the row) at every level, and the activity of a row by its bit: near blocks share most.
_TURN = np.array([[0.80, 0.20], [0.35, 0.65]])
_ACTIVITY = np.array([0.60, 0.40])
BLOCK_OFFSET, OWN_NOISE = 0.35, 0.25  # of the features of a repeated item, per mean length of a feature row


@dataclass(frozen=True)
class _Real:
    """The data set that is grown: pairs sorted by user; the first pair of each user is at `first`."""

    user: np.ndarray  # [E] int64, 0..users-1, each of which occurs
    item: np.ndarray  # [E] int64
    first: np.ndarray  # [users] int64
    users: int
    items: int


def expand(
    options: SyntheticOptions, read_dataset: Callable[[BuildOptions, Path, Stages], Dataset]
) -> tuple[Path, Path]:
    """Writes `interactions.parquet` and `items.parquet`, with ids `ID.REPETITION`.

    Writes exactly the requested users, items and interactions; every user has at least one interaction, and pairs are
    distinct. Equal options and data give equal files. Memory: the real data set, one block of users, and the ids of one
    block.

    Args:
        options: with `expand`, the data set to grow.
        read_dataset: reads it (`partition.build.read_dataset`).

    Returns:
        The two files.

    Raises:
        InputError: sizes below those of the data set, or that do not go together; an unknown modality; anything that
            `partition build` refuses about the data set; files that exist already.
    """
    assert options.expand is not None
    with (
        new_tables(options.output, options.overwrite) as (interactions, items),
        tempfile.TemporaryDirectory(prefix=".expand.", dir=options.output) as work,
    ):
        reading = BuildOptions(
            input=[str(options.expand)],
            output=options.output,
            parts=1,
            features=list(options.kept),
            pca=[f"{name}={width.dim}" for name, width in options.kept.items()],
        )
        dataset = read_dataset(reading, Path(work), Stages(quiet=True))
        real = _real(dataset)
        _check(options, real)
        user_ids = dataset.user_ids.take(pa.array(np.unique(dataset.user))).cast(pa.string())
        item_ids = dataset.item_ids.cast(pa.string())
        _write_interactions(interactions, options, real, user_ids, item_ids)
        _write_items(items, options, dataset, item_ids)
    return options.output / INTERACTIONS, options.output / ITEMS


def _real(dataset: Dataset) -> _Real:
    users, user = np.unique(dataset.user, return_inverse=True)
    first = np.searchsorted(user, np.arange(len(users)))
    return _Real(user, dataset.item.astype(np.int64), first, len(users), len(dataset.item_ids))


def _check(options: SyntheticOptions, real: _Real) -> None:
    for name, wanted, has in (("users", options.users, real.users), ("items", options.items, real.items)):
        if wanted < has:
            message = f"--{name} {wanted}: {options.expand} alone has {has}; an expansion does not shrink it"
            raise InputError(message, "synthetic.sizes")
    blocks = -(-options.users // real.users)
    most = len(real.user) * min(options.users // real.users, blocks) * min(4, options.items // real.items)
    if not options.users <= options.interactions <= max(most, options.users):
        raise InputError(
            f"--interactions {options.interactions}: with {options.users} users and {options.items} items grown from "
            f"{len(real.user)} interactions, choose {options.users} to {most}",
            "synthetic.sizes",
        )


def _write_interactions(
    path: Path, options: SyntheticOptions, real: _Real, user_ids: pa.Array, item_ids: pa.Array
) -> None:
    blocks = -(-options.users // real.users)
    sizes = _sizes(options, real, blocks)
    columns = _Columns(options.items, real.items)
    with pq.ParquetWriter(path, INTERACTION_SCHEMA) as writer:
        for block in tqdm(range(blocks), desc="interactions", unit="block", disable=None):
            rng = np.random.default_rng([options.seed, 0, block])
            here = min(real.users, options.users - block * real.users)
            user, item = _block(block, blocks, here, int(sizes[block]), real, columns, rng)
            table = pa.table(
                [
                    _repeated(user_ids, user, np.full(len(user), block)),
                    _repeated(item_ids, item % real.items, item // real.items),
                    pa.array(BEGIN + rng.integers(SPAN, size=len(user))),
                ],
                INTERACTION_SCHEMA,
            )
            writer.write_table(table, row_group_size=1 << 20)


def _sizes(options: SyntheticOptions, real: _Real, blocks: int) -> np.ndarray:
    """[blocks] interactions per block: one per user, the rest by the activity of the block, as far as there is room."""
    users = np.full(blocks, real.users)
    users[-1] = options.users - (blocks - 1) * real.users
    bits = _bits(np.arange(blocks), blocks)
    activity = np.prod(_ACTIVITY[bits], axis=1) * users
    room = np.array([int(np.searchsorted(real.user, count)) for count in users]) * min(4, options.items // real.items)
    sizes: np.ndarray = users.astype(np.int64)
    while (left := options.interactions - int(sizes.sum())) > 0:
        share = np.where(sizes < room, activity, 0.0)
        wanted = np.floor(np.cumsum(share) / share.sum() * left + 0.5)
        sizes = np.minimum(sizes + np.diff(wanted, prepend=0).astype(np.int64), room)
    return sizes


def _block(
    block: int, blocks: int, users: int, size: int, real: _Real, columns: _Columns, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`size` distinct pairs of the first `users` real users: user indices and expanded items, sorted."""
    edges = int(np.searchsorted(real.user, users))
    others = np.setdiff1d(np.arange(edges), real.first[:users], assume_unique=True)
    pairs = np.empty(0, np.int64)
    wanted = real.first[:users]  # first one interaction of every user
    while len(pairs) < size:
        column = columns.draw(block, blocks, len(wanted), rng)
        item = column * real.items + real.item[wanted]
        item = np.where(item < columns.items, item, real.item[wanted])  # the last block of items may be incomplete
        drawn = real.user[wanted] * columns.items + item
        pairs = np.sort(np.concatenate([pairs, drawn]))
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique hashes integers, which takes ten times as long
        missing = size - len(pairs)
        # Then the others, each once before any repeats.
        rounds = [rng.permutation(others if len(others) else wanted) for _ in range(-(-missing // max(len(others), 1)))]
        wanted = np.concatenate([np.empty(0, np.int64), *rounds])[:missing]
    return np.divmod(pairs, columns.items)


class _Columns:
    """Draws which repetition of an item an interaction leads to."""

    def __init__(self, items: int, real_items: int) -> None:
        self.items, self.blocks = items, -(-items // real_items)

    def draw(self, block: int, blocks: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count] int64 below `self.blocks`, for users of `block` of `blocks`."""
        own = _bits(np.array([block]), blocks)[0]
        levels = max(len(own), int(self.blocks - 1).bit_length())
        place = np.zeros(count)
        for level in range(levels):
            bit = own[level] if level < len(own) else 0
            place += (rng.random(count) >= _TURN[bit, 0]) * 0.5 ** (level + 1)
        return (place * self.blocks).astype(np.int64)


def _bits(number: np.ndarray, count: int) -> np.ndarray:
    """[n, levels] binary digits of number / count, the first one worth a half."""
    levels = max(1, int(count - 1).bit_length())
    scaled = (number * (1 << levels)) // count
    return (scaled[:, None] >> np.arange(levels - 1, -1, -1)) & 1


def _write_items(path: Path, options: SyntheticOptions, dataset: Dataset, item_ids: pa.Array) -> None:
    features = {name: modality.values for name, modality in dataset.features.items()}
    kinds = {
        name: options.kept.get(name, Width(values.shape[1], values.dtype.name)) for name, values in features.items()
    }
    schema, real = item_schema(kinds), len(item_ids)
    # The root mean square of one value, so that an offset has the stated share of the mean length of a row.
    unit = {name: float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) for name, values in features.items()}
    with pq.ParquetWriter(path, schema) as writer:
        for first in tqdm(range(0, options.items, ITEM_GROUP), desc="items", unit="block", disable=None):
            number = np.arange(first, min(first + ITEM_GROUP, options.items))
            block, original = np.divmod(number, real)
            rows = []
            for word, (name, values) in enumerate(features.items()):
                row = np.asarray(values[original], np.float32)
                rng = np.random.default_rng([options.seed, 1, word, first])
                for one in np.unique(block[block > 0]):  # block 0 is the real data itself
                    of_block = np.random.default_rng([options.seed, 2, word, int(one)])
                    offset = of_block.standard_normal(row.shape[1], np.float32)
                    chosen = block == one
                    noise = rng.standard_normal((int(chosen.sum()), row.shape[1]), np.float32)
                    row[chosen] += unit[name] * (BLOCK_OFFSET * offset + OWN_NOISE * noise)
                rows.append(row)
            writer.write_table(item_table(schema, _repeated(item_ids, original, block), rows))


def _repeated(ids: pa.Array, number: np.ndarray, repetition: np.ndarray) -> pa.Array:
    """Ids such as B00005.017."""
    return pc.binary_join_element_wise(ids.take(pa.array(number)), pa.array(repetition).cast(pa.string()), ".")
