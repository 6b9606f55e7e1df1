"""Degrades features on purpose: a share of the items exchange their feature rows.

A permuted row is a real feature row of another item, so only its relation to the item is lost; norms, spread and
similarities among the rows do not change. At 100 % every item has the features of another one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from partition.columns_on_disk import npy_file
from partition.transform.dataset import Features

BLOCK = 65_536  # rows copied at a time
_ITEMS, _ORDER = 0, 1  # purpose of a random number, part of its key


def noisy_items(items: int, fraction: float, seed: int) -> np.ndarray:
    """[n] int64 items whose rows are exchanged, ascending; a larger fraction includes those of a smaller one."""
    count = round(fraction * items)
    return np.sort(np.random.default_rng([seed, _ITEMS]).permutation(items)[:count])


def permute_rows(features: Features, chosen: np.ndarray, seed: int, modality: int, target: Path) -> Features:
    """The matrix of one modality with the rows of the `chosen` items permuted in a cycle of random order.

    If two or more are chosen, no item keeps its own row. Rows of zeros are permuted like others.

    Args:
        features: the matrix.
        chosen: [n] from `noisy_items`.
        seed: of the order.
        modality: its number; modalities are permuted independently, so that they do not agree afterwards.
        target: .npy file for the result.
    """
    values = features.values
    source = np.arange(len(values))
    order = np.random.default_rng([seed, _ORDER, modality]).permutation(chosen)
    source[order] = np.roll(order, 1)
    result = npy_file(target, values.dtype, values.shape)
    for begin in range(0, len(values), BLOCK):
        result[begin : begin + BLOCK] = values[source[begin : begin + BLOCK]]
    missing = None if features.missing is None else features.missing[source]
    return Features(result, features.source_dim, features.basis, missing)
