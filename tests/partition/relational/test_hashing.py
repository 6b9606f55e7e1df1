from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.relational.connect import connect
from partition.relational.export import column
from partition.relational.hashing import HASH, LAST_SHIFT, MASK, ROUNDS, mix, seeded, with_hash


def mixed(value: np.ndarray) -> np.ndarray:
    """`mix` of uint64 columns."""
    for shift, factor in ROUNDS:
        value = value ^ (value >> np.uint64(shift))
        value = value * np.uint64(factor) & np.uint64(MASK)
    return value ^ (value >> np.uint64(LAST_SHIFT))


def hashes(seed: int, *columns: np.ndarray) -> np.ndarray:
    state = np.full(len(columns[0]), seeded(seed), np.uint64)
    for values in columns:
        number = values.astype(np.uint64)
        state = mixed(state ^ (number & np.uint64(MASK)) ^ (number >> np.uint64(32)))
    return state.astype(np.int64)


def drawn(folder: Path, seed: int, **columns: np.ndarray) -> np.ndarray:
    path = folder / "numbers.parquet"
    pq.write_table(pa.table({"row": np.arange(len(columns["user"])), **columns}), path)
    with connect("duckdb", folder) as engine:
        table = with_hash(engine.parquet([str(path)]), seed, list(columns))
        return column(engine, table.order_by("row"), HASH)


@pytest.mark.parametrize("seed", [0, 2025, 2**40 + 3])
def test_the_engine_computes_what_numpy_does(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(0)
    small, large = rng.integers(0, 1000, 500), rng.integers(0, 2**62, 500)
    np.testing.assert_array_equal(drawn(tmp_path, seed, user=small, item=large), hashes(seed, small, large))
    narrow = small.astype(np.int32)
    np.testing.assert_array_equal(drawn(tmp_path, seed, user=narrow, item=large), hashes(seed, small, large))


def test_seeds_and_numbers_are_mixed_one_to_one() -> None:
    items = np.arange(1 << 18)
    assert len(np.unique(hashes(3, np.full(len(items), 7), items))) == len(items)
    assert len({seeded(seed) for seed in [*range(1000), 2**32, 2**64]}) == 1002
    assert mix(0) == 0
    assert 0 <= mix(MASK) <= MASK


def test_hashes_are_uniform_and_independent() -> None:
    """Every bit, the buckets, the order within a user, and neighbouring seeds: within 5 standard deviations."""
    count = 1 << 18
    user, item = np.arange(count) // 512, np.arange(count) % 512
    first, second = (hashes(seed, user, item) for seed in (0, 1))
    bits = first[:, None] >> np.arange(32) & 1
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(count)
    buckets = np.bincount(first >> 24, minlength=256)
    chi_square = ((buckets - count / 256) ** 2 / (count / 256)).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    bound = 5 / np.sqrt(count)
    assert abs(np.corrcoef(first, second)[0, 1]) < bound
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < bound
    assert abs(np.corrcoef(first, item)[0, 1]) < bound
    flipped = first ^ hashes(0, user, item ^ 1)  # one bit in, half of the bits out
    assert abs((flipped[:, None] >> np.arange(32) & 1).mean() - 0.5) < 0.002
    # The place of the first item among those of its user: every place is as likely.
    place = (first.reshape(-1, 512) < first.reshape(-1, 512)[:, :1]).sum(axis=1)
    assert abs(place.mean() - 255.5) < 5 * 512 / np.sqrt(12 * 512)
