"""Four ways to divide interactions into training, validation and test; the same seed gives the same split."""

from __future__ import annotations

from typing import Literal

import numpy as np

from partition.dataset import TEST, TRAIN, VALIDATION, Interactions
from partition.errors import InputError

Method = Literal["column", "random", "leave_last_out", "cold_items"]


def split(interactions: Interactions, method: Method, seed: int) -> np.ndarray:
    """[E] int8 of TRAIN, VALIDATION and TEST.

    Args:
        interactions: sorted by (user, item), pairs unique; with `split` for "column", `time` for "leave_last_out".
        method: "column" takes the labels as they are; "random" divides every user's interactions 8:1:1;
            "leave_last_out" tests a user's last one and validates the one before; "cold_items" holds out whole items.
        seed: of "random" and "cold_items".
    """
    rng = np.random.default_rng(seed)
    if method == "random":
        noise = rng.random(len(interactions))
        return _last_of_user(interactions.user, noise, *_tenths(interactions.user))
    if method == "leave_last_out":
        assert interactions.time is not None
        degree = np.bincount(interactions.user)
        return _last_of_user(interactions.user, interactions.time, (degree >= 3).astype(int), (degree >= 2).astype(int))
    if method == "cold_items":
        return _cold_items(interactions.item, rng)
    assert interactions.split is not None
    return interactions.split


def _tenths(user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per user, how many interactions validate and test: a tenth each, at least one if one is left for training.

    Rounded as in MMRec's published splits: a fifth is held out, rounded down, and the odd one of it tests.
    """
    degree = np.bincount(user)
    validation = np.maximum(degree // 10, 1)
    test = np.maximum(degree // 5 - degree // 10, 1)
    return np.where(degree >= 3, validation, 0), np.where(degree >= 2, test, 0)


def _last_of_user(user: np.ndarray, key: np.ndarray, validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Orders each user's interactions by `key`: the last `test` test, the `validation` before them validate."""
    order = np.lexsort((key, user))  # stable: equal keys stay in the order of the items
    degree = np.bincount(user)
    from_end = np.repeat(np.cumsum(degree), degree) - np.arange(len(user))  # 1 is the last; users are contiguous
    labels = np.full(len(user), TRAIN, np.int8)
    owner = user[order]
    labels[order[from_end <= (validation + test)[owner]]] = VALIDATION
    labels[order[from_end <= test[owner]]] = TEST
    return labels


def _cold_items(item: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tenth of the items that have interactions goes to validation, another to test, with all they have."""
    warm = np.flatnonzero(np.bincount(item))
    tenth = round(len(warm) / 10)
    if not tenth:
        raise InputError(f"--split cold-items: {len(warm)} items with interactions are too few to hold out a tenth")
    drawn = rng.permutation(warm)
    label = np.full(int(item.max()) + 1, TRAIN, np.int8)
    label[drawn[:tenth]] = VALIDATION
    label[drawn[tenth : 2 * tenth]] = TEST
    return label[item]
