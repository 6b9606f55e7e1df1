"""Features made worse on purpose: the rows of a share of the items change places among themselves.

A permuted row is a real feature row, of another item, so that nothing but its relation to the item is lost: length,
spread and similarities among the features stay as they were. What is left at 100 % is a catalogue of wrong features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from partition.transform.dataset import Features

BLOCK = 65_536  # rows copied at a time
_ITEMS, _ORDER = 0, 1  # what a random number is for


def noisy_items(items: int, fraction: float, seed: int) -> np.ndarray:
    """Ascending numbers of the items whose rows change places; those of a smaller fraction are among them."""
    count = round(fraction * items)
    return np.sort(np.random.default_rng([seed, _ITEMS]).permutation(items)[:count])


def permute_rows(features: Features, chosen: np.ndarray, seed: int, modality: int, target: Path) -> Features:
    """One modality's matrix in which the rows of the `chosen` items [n] change places, in a cycle of random order.

    No item keeps its own row, if there are two. A row of zeros travels like any other.

    Args:
        features: the matrix.
        chosen: from `noisy_items`.
        seed: of the order.
        modality: its number: modalities change places independently, so that they do not agree afterwards either.
        target: .npy file for the result.
    """
    values = features.values
    source = np.arange(len(values))
    order = np.random.default_rng([seed, _ORDER, modality]).permutation(chosen)
    source[order] = np.roll(order, 1)
    result = np.lib.format.open_memmap(target, mode="w+", dtype=values.dtype, shape=values.shape)
    for begin in range(0, len(values), BLOCK):
        result[begin : begin + BLOCK] = values[source[begin : begin + BLOCK]]
    return Features(result, features.source_dim, features.basis)
