"""Cleaning before and after the split: repeated pairs, the k-core, and what cannot be evaluated."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from partition.dataset import TRAIN, Interactions


def merge_duplicates(interactions: Interactions, items: int) -> tuple[Interactions, int]:
    """Keeps each (user, item) pair once, sorted by both, with its lowest split label and its earliest time.

    A pair that occurs in training and in test therefore counts as training, and nothing leaks.

    Args:
        interactions: in any order.
        items: number of items, so that a pair fits one integer.

    Returns:
        The pairs, and how many rows were merged away.
    """
    columns = {"pair": interactions.user * items + interactions.item}
    columns |= {
        name: column
        for name, column in (("split", interactions.split), ("time", interactions.time))
        if column is not None
    }
    table = pa.table(columns)
    merged = table.group_by("pair").aggregate([(name, "min") for name in columns if name != "pair"]).sort_by("pair")
    user, item = np.divmod(merged["pair"].to_numpy(), items)
    split, time = (merged[f"{name}_min"].to_numpy() if name in columns else None for name in ("split", "time"))
    return Interactions(user, item, split, time), len(interactions) - len(user)


def k_core(interactions: Interactions, k: int) -> Interactions:
    """The largest set of interactions in which every user and every item has at least `k`; indices stay as they are."""
    while len(interactions):
        kept = np.bincount(interactions.user)[interactions.user] >= k
        kept &= np.bincount(interactions.item)[interactions.item] >= k
        if kept.all():
            break
        interactions = interactions.take(kept)
    return interactions


def renumber(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices without gaps: the values that occur, ascending, and for each entry its position among them."""
    used = np.flatnonzero(np.bincount(values))
    number = np.empty(used[-1] + 1 if len(used) else 0, np.int64)
    number[used] = np.arange(len(used))
    return used, number[values]


def evaluable(user: np.ndarray, split: np.ndarray) -> np.ndarray:
    """[E] mask that leaves out validation and test interactions of users who have none in training."""
    trained = np.zeros(int(user.max()) + 1, bool)
    trained[user[split == TRAIN]] = True
    return (split == TRAIN) | trained[user]
