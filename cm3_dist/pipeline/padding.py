"""Padding of batches to one size with unused rows of count 0, so that a CUDA graph can be replayed on them."""

from __future__ import annotations

import numpy as np


def pad_rows(rows: np.ndarray, count: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads sorted unique `rows` to `size` with unused rows of count 0.

    Args:
        rows: [n] int64 local rows, ascending and distinct.
        count: [n] how often each was drawn.
        size: of the result; at least n and at most the number of local rows.

    Returns:
        [size] rows, ascending, and their counts.
    """
    free = np.ones(size, bool)
    free[rows[rows < size]] = False
    added = np.flatnonzero(free)[: size - len(rows)]
    place = np.searchsorted(added, rows) + np.arange(len(rows))
    all_rows, counts = np.empty(size, np.int64), np.zeros(size, count.dtype)
    mask = np.ones(size, bool)
    mask[place] = False
    all_rows[place], all_rows[mask], counts[place] = rows, added, count
    return all_rows, counts
