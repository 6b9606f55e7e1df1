"""Generates a multimodal data set with planted tastes, of any size, one block at a time.

Items belong to taste clusters and have a power-law popularity. Users, whose activity follows a power law too, like one
to three clusters and pick popular items there; a tenth of their interactions ignores taste. The features of an item are
the centre of its cluster plus noise, seen through one random projection per modality. A model that finds the clusters
ranks far better than popularity does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from partition.errors import InputError
from partition.synthetic import tables as raw_tables
from partition.synthetic.options import SyntheticOptions
from partition.synthetic.tables import (
    BEGIN,
    INTERACTION_SCHEMA,
    SPAN,
    item_schema,
    item_table,
    new_tables,
    numbered,
)

LATENT = 16  # dimensions of the cluster centres
LEAST = 5  # interactions of a user, if the average allows it
ASTRAY = 0.1  # share of interactions that ignore the user's tastes
TASTES = np.array([[1, 1, 1], [2 / 3, 1, 1], [6 / 11, 9 / 11, 1]])  # cumulative shares of one, two or three tastes


def synthesise(options: SyntheticOptions) -> tuple[Path, Path]:
    """Writes `interactions.parquet` (user, item, timestamp) and `items.parquet` (item, a list column per modality).

    Exactly `options.interactions` distinct pairs; equal options give equal data.

    Returns:
        The two files.

    Raises:
        InputError: sizes that do not go together, or files that exist already.
    """
    most = options.items // 2
    if not options.users <= options.interactions <= options.users * most:
        raise InputError(
            f"--interactions {options.interactions}: with {options.users} users and {options.items} items, "
            f"choose {options.users} to {options.users * most}",
            "synthetic.sizes",
        )
    if options.clusters > options.items:
        raise InputError(f"--clusters {options.clusters}: more than the {options.items} items", "synthetic.clusters")
    with new_tables(options.output, options.overwrite) as (interactions, items):
        rng = np.random.default_rng(options.seed)
        cluster = rng.permutation(np.arange(options.items) % options.clusters)
        _write_interactions(interactions, options, cluster, rng)
        _write_items(items, options, cluster, rng)
    return options.output / raw_tables.INTERACTIONS, options.output / raw_tables.ITEMS


def _write_interactions(path: Path, options: SyntheticOptions, cluster: np.ndarray, rng: np.random.Generator) -> None:
    degree = _degrees(options, rng)
    taste = _Taste(cluster, (1.0 + rng.permutation(options.items)) ** -0.9, options.clusters)
    step = max(1, raw_tables.ROW_GROUP * options.users // options.interactions)
    with pq.ParquetWriter(path, INTERACTION_SCHEMA) as writer:
        for first in tqdm(range(0, options.users, step), desc="interactions", unit="block", disable=None):
            user, item = taste.draw(degree[first : first + step], rng)
            columns = [
                numbered("user", user + first, options.users),
                numbered("item", item, options.items),
                pa.array(BEGIN + rng.integers(SPAN, size=len(user))),
            ]
            writer.write_table(pa.table(columns, INTERACTION_SCHEMA), row_group_size=len(user))


def _degrees(options: SyntheticOptions, rng: np.random.Generator) -> np.ndarray:
    """[users] interactions per user: a power law between `LEAST` and half of the items, with the requested sum."""
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
        """Users (indices into `degree`) and items of `degree` distinct pairs per user, sorted by both."""
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
            if attempt >= 8:  # users who have nearly all items they like: any item, popular or not
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
    views = [rng.standard_normal((LATENT, width.dim)) for width in options.planted.values()]
    schema = item_schema(options.planted)
    with pq.ParquetWriter(path, schema) as writer:
        for first in tqdm(range(0, options.items, raw_tables.ITEM_GROUP), desc="items", unit="block", disable=None):
            own = cluster[first : first + raw_tables.ITEM_GROUP]
            latent = centres[own] + 0.5 * rng.standard_normal((len(own), LATENT))
            rows = []
            for view in views:
                seen = latent @ view / np.sqrt(LATENT)
                seen += 0.3 * rng.standard_normal(seen.shape)
                rows.append(seen)
            ids = numbered("item", first + np.arange(len(own)), options.items)
            writer.write_table(item_table(schema, ids, rows))
