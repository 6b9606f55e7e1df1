"""Four ways to divide interactions into training, validation and test; the same seed gives the same split."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from partition import columns_on_disk as blocks
from partition.errors import InputError
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Interactions

Method = Literal["column", "random", "leave_last_out", "cold_items"]


def split(interactions: Interactions, method: Method, seed: int, folder: Path | None = None) -> np.ndarray:
    """[E] int8 of TRAIN, VALIDATION and TEST.

    Args:
        interactions: sorted by (user, item), pairs unique; with `split` for "column", `time` for "leave_last_out".
        method: "column" takes the labels as they are; "random" divides every user's interactions 8:1:1;
            "leave_last_out" tests a user's last one and validates the one before; "cold_items" holds out whole items.
        seed: of "random" and "cold_items".
        folder: where the column goes (see `partition.columns_on_disk`).
    """
    rng = np.random.default_rng(seed)
    if method == "column":
        assert interactions.split is not None
        return interactions.split
    if method == "cold_items":
        return blocks.mapped(_cold_items(interactions.item, rng), interactions.item, folder)
    degree = blocks.counts(interactions.user)
    held_out = _tenths(degree) if method == "random" else ((degree >= 3).astype(int), (degree >= 2).astype(int))
    labels = blocks.column(len(interactions), np.int8, folder)
    whole_users = list(blocks.slices_of_nodes(degree))
    for rows in tqdm(whole_users, desc="split", unit="block", disable=None, leave=False):
        if method == "random":
            key = rng.random(rows.stop - rows.start)
        else:
            assert interactions.time is not None
            key = interactions.time[rows]
        labels[rows] = _last_of_user(interactions.user[rows], key, *held_out)
    return labels


def _tenths(degree: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per user, how many interactions validate and test: a tenth each, at least one if one is left for training.

    Rounded as in MMRec's published splits: a fifth is held out, rounded down, and the odd one of it tests.
    """
    validation = np.maximum(degree // 10, 1)
    test = np.maximum(degree // 5 - degree // 10, 1)
    return np.where(degree >= 3, validation, 0), np.where(degree >= 2, test, 0)


def _last_of_user(user: np.ndarray, key: np.ndarray, validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Orders each user's interactions by `key`: the last `test` test, the `validation` before them validate.

    Args:
        user: [n] of whole users, ascending.
        key: [n]
        validation, test: [users] how many of each user's.
    """
    order = np.lexsort((key, user))  # stable: equal keys stay in the order of the items
    degree = np.bincount(user - user[0])
    from_end = np.repeat(np.cumsum(degree), degree) - np.arange(len(user))  # 1 is the last
    labels = np.full(len(user), TRAIN, np.int8)
    owner = user[order]
    labels[order[from_end <= (validation + test)[owner]]] = VALIDATION
    labels[order[from_end <= test[owner]]] = TEST
    return labels


def _cold_items(item: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[items] int8: a tenth of those that have interactions goes to validation, another to test, with all they have."""
    degree = blocks.counts(item)
    warm = np.flatnonzero(degree)
    tenth = round(len(warm) / 10)
    if not tenth:
        raise InputError(f"--split cold-items: {len(warm)} items with interactions are too few to hold out a tenth")
    drawn = rng.permutation(warm)
    label = np.full(len(degree), TRAIN, np.int8)
    label[drawn[:tenth]] = VALIDATION
    label[drawn[tenth : 2 * tenth]] = TEST
    return label
