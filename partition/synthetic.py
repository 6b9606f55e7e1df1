"""A multimodal data set with planted tastes, of any size, written a block at a time.

Items belong to taste clusters and have a power-law popularity; users, whose activity follows a power law too, like one
to three clusters and pick popular items there, apart from a tenth of their interactions that ignores taste. An item's
features are its cluster's centre plus noise, seen through a random projection per modality. Whoever finds the clusters
ranks far better than popularity does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from partition.errors import InputError

INTERACTIONS, ITEMS = "interactions.parquet", "items.parquet"
ROW_GROUP = 1 << 20  # interactions, about
ITEM_GROUP = 1 << 14
LATENT = 16  # dimensions in which the clusters' centres lie
LEAST = 5  # interactions of a user, where the average allows it
ASTRAY = 0.1  # share of interactions that ignore the user's tastes
TASTES = np.array([[1, 1, 1], [2 / 3, 1, 1], [6 / 11, 9 / 11, 1]])  # cumulative shares of one, two or three tastes
BEGIN, SPAN = 1_577_836_800, 2 * 365 * 86_400  # timestamps: two years from 2020 on


@dataclass(frozen=True)
class SyntheticOptions:
    """What to make; `modalities` is name -> width."""

    output: Path
    users: int = 3_000
    items: int = 1_500
    interactions: int = 45_000
    clusters: int = 30
    modalities: dict[str, int] = field(default_factory=lambda: {"image": 64, "text": 32})
    seed: int = 2025
    overwrite: bool = False


def parse_modalities(text: str) -> dict[str, int]:
    """Reads `NAME:DIM,NAME:DIM`.

    Raises:
        InputError: anything else, or a name twice.
    """
    modalities: dict[str, int] = {}
    for entry in text.split(","):
        match = re.fullmatch(r"([A-Za-z0-9_-]+):([1-9][0-9]*)", entry.strip())
        if match is None or match[1] in modalities:
            raise InputError(f"--modalities {text}: {entry.strip()!r}: expected NAME:DIM, each name once")
        modalities[match[1]] = int(match[2])
    return modalities


def synthesise(options: SyntheticOptions) -> tuple[Path, Path]:
    """Writes `interactions.parquet` (user, item, timestamp) and `items.parquet` (item, a list column per modality).

    Exactly `options.interactions` distinct pairs; equal options give equal data.

    Returns:
        The two files.

    Raises:
        InputError: sizes that do not go together, or files that are there already.
    """
    most = options.items // 2
    if not options.users <= options.interactions <= options.users * most:
        raise InputError(
            f"--interactions {options.interactions}: with {options.users} users and {options.items} items, "
            f"choose {options.users} to {options.users * most}"
        )
    if options.clusters > options.items:
        raise InputError(f"--clusters {options.clusters}: more than the {options.items} items")
    targets = options.output / INTERACTIONS, options.output / ITEMS
    for target in targets:
        if target.exists() and not options.overwrite:
            raise InputError(f"{target}: exists already; add --overwrite to replace it")
    options.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(options.seed)
    cluster = rng.permutation(np.arange(options.items) % options.clusters)
    with _whole(targets[0]) as interactions, _whole(targets[1]) as items:
        _write_interactions(interactions, options, cluster, rng)
        _write_items(items, options, cluster, rng)
    return targets


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A temporary name that becomes `target` when the block ends well."""
    path = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield path
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)


def _write_interactions(path: Path, options: SyntheticOptions, cluster: np.ndarray, rng: np.random.Generator) -> None:
    degree = _degrees(options, rng)
    taste = _Taste(cluster, (1.0 + rng.permutation(options.items)) ** -0.9, options.clusters)
    step = max(1, ROW_GROUP * options.users // options.interactions)
    schema = pa.schema([("user", pa.string()), ("item", pa.string()), ("timestamp", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in tqdm(range(0, options.users, step), desc="interactions", unit="block", disable=None):
            user, item = taste.draw(degree[first : first + step], rng)
            columns = [
                _ids("user", user + first, options.users),
                _ids("item", item, options.items),
                pa.array(BEGIN + rng.integers(SPAN, size=len(user))),
            ]
            writer.write_table(pa.table(columns, schema), row_group_size=len(user))


def _degrees(options: SyntheticOptions, rng: np.random.Generator) -> np.ndarray:
    """[users] interactions of each user: a power law between `LEAST` and half of the items, with the sum asked for."""
    most = options.items // 2
    degree: np.ndarray = np.full(options.users, min(LEAST, options.interactions // options.users, most))
    activity = np.minimum(1 + rng.pareto(1.5, options.users), 40)
    while left := options.interactions - int(degree.sum()):
        open_to = np.where(degree < most, activity, 0)
        degree = np.minimum(degree + rng.multinomial(left, open_to / open_to.sum()), most)
    return degree


class _Taste:
    """Draws items: within a cluster, or anywhere, in proportion to popularity."""

    def __init__(self, cluster: np.ndarray, popularity: np.ndarray, clusters: int) -> None:
        self.items, self.clusters = len(cluster), clusters
        self.order = np.argsort(cluster, kind="stable")  # items by cluster
        self.edges = np.concatenate([[0.0], np.cumsum(popularity[self.order])])
        self.bounds = self.edges[np.searchsorted(cluster[self.order], np.arange(clusters + 1))]

    def draw(self, degree: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """User (position in `degree`) and item of as many distinct pairs as `degree` asks for, sorted by both."""
        liked = rng.integers(self.clusters, size=(len(degree), 3))
        tastes = rng.integers(3, size=len(degree))
        pairs: np.ndarray = np.empty(0, np.int64)
        missing, attempt = degree, 0
        while missing.any():
            user = np.repeat(np.arange(len(degree)), missing)
            chance = rng.random((2, len(user)))
            which = (chance[0][:, None] >= TASTES[tastes[user]]).sum(axis=1)
            chosen = liked[user, which]
            low, high = self.bounds[chosen], self.bounds[chosen + 1]
            anywhere = rng.random(len(user)) < ASTRAY
            low[anywhere], high[anywhere] = 0, self.edges[-1]
            place = np.searchsorted(self.edges, low + chance[1] * (high - low), side="right") - 1
            if attempt >= 8:  # whoever has taken nearly all of what they like: any item, popular or not
                place = rng.integers(self.items, size=len(user))
            item = self.order[np.minimum(place, self.items - 1)]
            pairs = np.sort(np.concatenate([pairs, user * self.items + item]))
            pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique hashes integers, which takes ten times as long
            missing = degree - np.bincount(pairs // self.items, minlength=len(degree))
            attempt += 1
        user, item = np.divmod(pairs, self.items)
        return user, item


def _write_items(path: Path, options: SyntheticOptions, cluster: np.ndarray, rng: np.random.Generator) -> None:
    centres = rng.standard_normal((options.clusters, LATENT))
    views = {name: rng.standard_normal((LATENT, width)) for name, width in options.modalities.items()}
    kinds = {name: pa.list_(pa.float32(), width) for name, width in options.modalities.items()}
    schema = pa.schema([("item", pa.string()), *kinds.items()])
    with pq.ParquetWriter(path, schema) as writer:
        for first in tqdm(range(0, options.items, ITEM_GROUP), desc="items", unit="block", disable=None):
            own = cluster[first : first + ITEM_GROUP]
            latent = centres[own] + 0.5 * rng.standard_normal((len(own), LATENT))
            columns = [_ids("item", first + np.arange(len(own)), options.items)]
            for name, view in views.items():
                seen = latent @ view / np.sqrt(LATENT)
                seen += 0.3 * rng.standard_normal(seen.shape)
                columns.append(
                    pa.FixedSizeListArray.from_arrays(pa.array(seen.astype(np.float32).ravel()), type=kinds[name])
                )
            writer.write_table(pa.table(columns, schema))


def _ids(kind: str, number: np.ndarray, count: int) -> pa.Array:
    """Ids such as user-000123."""
    digits = pc.utf8_lpad(pa.array(number).cast(pa.string()), max(6, len(str(count - 1))), "0")
    return pc.binary_join_element_wise(kind, digits, "-")
