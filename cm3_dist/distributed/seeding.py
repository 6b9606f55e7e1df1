"""Keys of all random draws: functions of purpose, seed, epoch, step, part or row, never of the rank."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purpose of a random draw: the first word of its key, so that no two purposes share a sequence."""

    INIT = 0
    ORDER = 1
    NEGATIVES = 2
    NEIGHBOURS = 3
    CURVE = 4
    BASELINE = 5
    EVALUATION = 6


def key(stream: Stream, *words: int) -> int:
    """A 63-bit seed for (stream, seed, epoch, step, part, ...), never of the rank: W does not change a draw."""
    return int(np.random.SeedSequence([int(stream), *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(stream: Stream, *words: int) -> np.random.Generator:
    """A NumPy generator for (stream, seed, epoch, step, part, ...)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(stream), *words])))


def uniform_by_row(seed: int, rows: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1) that depend only on (seed, row): [n] int64 -> [n] float64.

    The draw is counter-based (the splitmix64 finaliser), so a node gets the same number in every set of nodes: exact
    and sampled propagation share their fusion parameters.
    """
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
