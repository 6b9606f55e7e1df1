"""Divides interactions into training, validation and test; the same seed gives the same split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from partition import columns_on_disk as blocks
from partition.errors import InputError
from partition.options import SplitMethod
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Interactions


def split(interactions: Interactions, method: SplitMethod, seed: int, folder: Path | None = None) -> np.ndarray:
    """[E] int8 labels TRAIN, VALIDATION and TEST.

    Args:
        interactions: sorted by (user, item), pairs unique; with `split` for COLUMN, with `time` for LEAVE_LAST_OUT.
        method: COLUMN takes the labels as they are; RANDOM divides the interactions of each user 8:1:1; LEAVE_LAST_OUT
            takes the last one of each user for test and the one before for validation; COLD_ITEMS holds out whole
            items; AUTO is COLUMN if there are labels, else RANDOM.
        seed: of RANDOM and COLD_ITEMS.
        folder: for the column (see `partition.columns_on_disk`).

    Raises:
        InputError: too few items to hold out a tenth of them.
    """
    method = resolved(method, interactions)
    rng = np.random.default_rng(seed)
    if method is SplitMethod.COLUMN:
        assert interactions.split is not None
        return interactions.split
    if method is SplitMethod.COLD_ITEMS:
        return blocks.mapped(_cold_items(interactions.item, rng), interactions.item, folder)
    degree = blocks.counts(interactions.user)
    one_each = (degree >= 3).astype(int), (degree >= 2).astype(int)
    validation, test = _tenths(degree) if method is SplitMethod.RANDOM else one_each
    labels = blocks.column(len(interactions), np.int8, folder)
    whole_users = list(blocks.slices_of_nodes(degree))
    for rows in tqdm(whole_users, desc="split", unit="block", disable=None, leave=False):
        if method is SplitMethod.RANDOM:
            key = rng.random(rows.stop - rows.start)
        else:
            assert interactions.time is not None
            key = interactions.time[rows]
        labels[rows] = _last_of_user(interactions.user[rows], key, validation, test)
    return labels


def resolved(method: SplitMethod, interactions: Interactions) -> SplitMethod:
    """The method that AUTO stands for."""
    if method is SplitMethod.AUTO:
        return SplitMethod.RANDOM if interactions.split is None else SplitMethod.COLUMN
    return method


def _tenths(degree: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[users] validation and test interactions per user: a tenth each, at least one if one is left for training.

    Rounded as in MMRec's published splits: a fifth is held out, rounded down; an odd one goes to test.
    """
    validation = np.maximum(degree // 10, 1)
    test = np.maximum(degree // 5 - degree // 10, 1)
    return np.where(degree >= 3, validation, 0), np.where(degree >= 2, test, 0)


def _last_of_user(user: np.ndarray, key: np.ndarray, validation: np.ndarray, test: np.ndarray) -> np.ndarray:
    """[n] int8 labels: by `key`, the last `test` rows of a user are test, the `validation` rows before them validation.

    Args:
        user: [n] of whole users, ascending.
        key: [n]
        validation, test: [users] number of interactions per user.
    """
    order = np.lexsort((key, user))  # stable: equal keys keep the order of the items
    degree = np.bincount(user - user[0])
    from_end = np.repeat(np.cumsum(degree), degree) - np.arange(len(user))  # 1 is the last
    labels = np.full(len(user), TRAIN, np.int8)
    owner = user[order]
    labels[order[from_end <= (validation + test)[owner]]] = VALIDATION
    labels[order[from_end <= test[owner]]] = TEST
    return labels


def _cold_items(item: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[items] int8 labels: a tenth of the items that have interactions is validation, another tenth is test."""
    degree = blocks.counts(item)
    warm = np.flatnonzero(degree)
    tenth = round(len(warm) / 10)
    if not tenth:
        message = f"--split cold-items: {len(warm)} items with interactions are too few to hold out a tenth"
        raise InputError(message, "split.items")
    drawn = rng.permutation(warm)
    label = np.full(len(degree), TRAIN, np.int8)
    label[drawn[:tenth]] = VALIDATION
    label[drawn[tenth : 2 * tenth]] = TEST
    return label
