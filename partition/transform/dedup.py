"""Cleaning before and after the split: repeated pairs, the k-core, and interactions that cannot be evaluated.

New columns are files in `folder` (see `partition.columns_on_disk`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from partition import columns_on_disk as blocks
from partition.transform.dataset import TRAIN, Interactions

BUCKET = 1 << 21  # rows sorted in memory at a time, about 60 bytes each


def merge_duplicates(interactions: Interactions, items: int, folder: Path | None = None) -> tuple[Interactions, int]:
    """Keeps each (user, item) pair once, sorted by both, with its lowest split label and its earliest time.

    A pair that occurs in training and in test therefore counts as training, so no test interaction leaks.

    Args:
        interactions: in any order.
        items: number of items; a pair is encoded as one integer.
        folder: for the columns.

    Returns:
        The pairs, and the number of rows that were merged.
    """
    columns = interactions.columns
    merged = {name: blocks.column(len(interactions), values.dtype, folder) for name, values in columns.items()}
    buckets = _by_user(interactions, folder)
    done = 0
    for number in tqdm(range(len(buckets)), desc="clean", unit="bucket", disable=None, leave=False):
        user, item, *others = buckets.rows(number)
        pair = user.astype(np.int64) * items + item
        order = np.argsort(pair, kind="stable")
        pair = pair[order]
        first = np.flatnonzero(np.diff(pair, prepend=-1))
        end = done + len(first)
        merged["user"][done:end], merged["item"][done:end] = np.divmod(pair[first], items)
        for (name, _), values in zip(list(columns.items())[2:], others, strict=True):
            merged[name][done:end] = np.minimum.reduceat(values[order], first)
        done = end
    return Interactions(**{name: values[:done] for name, values in merged.items()}), len(interactions) - done


def _by_user(interactions: Interactions, folder: Path | None) -> blocks.Buckets:
    """The interactions in non-empty buckets of whole users, ascending."""
    degree = blocks.counts(interactions.user)
    bounds = blocks.cuts(degree, BUCKET)
    bucket = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    sizes = np.add.reduceat(degree, bounds[:-1])
    columns = list(interactions.columns.values())
    buckets = blocks.Buckets(sizes, [values.dtype for values in columns], folder)
    for rows in blocks.slices(len(interactions)):
        buckets.add(bucket[interactions.user[rows]], *(values[rows] for values in columns))
    return buckets


def k_core(interactions: Interactions, k: int, folder: Path | None = None) -> Interactions:
    """The largest set of interactions in which every user and every item has at least `k`; indices do not change."""
    while len(interactions):
        core = _connected(interactions, k, folder)
        if len(core) == len(interactions):
            break
        interactions = core
    return interactions


def _connected(interactions: Interactions, k: int, folder: Path | None) -> Interactions:
    """The interactions whose user and item both have at least `k`."""
    user, item = interactions.user, interactions.item
    users, items = blocks.counts(user) >= k, blocks.counts(item) >= k
    return interactions.select(lambda rows: users[user[rows]] & items[item[rows]], folder)


def renumber(values: np.ndarray, folder: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Indices without gaps: the values that occur, ascending, and the position of each entry among them."""
    occurs = blocks.counts(values) > 0
    number = (np.cumsum(occurs) - 1).astype(values.dtype)
    return np.flatnonzero(occurs), blocks.mapped(number, values, folder)


def evaluable(user: np.ndarray, split: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """[E] mask without the validation and test interactions of users who have no training interaction."""
    trained = np.zeros(int(user[-1]) + 1, bool)  # sorted
    for rows in blocks.slices(len(user)):
        trained[user[rows][split[rows] == TRAIN]] = True
    keep = blocks.column(len(user), bool, folder)
    for rows in blocks.slices(len(user)):
        keep[rows] = (split[rows] == TRAIN) | trained[user[rows]]
    return keep
