"""A data set grown from another: exact sizes, the structure of the original, reproducible, its features still known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.build import read_dataset
from partition.errors import InputError
from partition.synthetic.fractal import expand
from partition.synthetic.options import SyntheticOptions, Width
from partition.synthetic.planted import synthesise

REAL_USERS, REAL_ITEMS, REAL_EDGES = 60, 40, 600
USERS, ITEMS, EDGES = 1000, 300, 12_345


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    options = SyntheticOptions(
        output=folder,
        users=REAL_USERS,
        items=REAL_ITEMS,
        interactions=REAL_EDGES,
        clusters=4,
        modalities={"image": Width(12), "text": Width(6)},
        seed=1,
    )
    synthesise(options)
    return folder


def _grow(real: Path, output: Path, **changes: object) -> tuple[Path, Path]:
    options: dict[str, Any] = {"users": USERS, "items": ITEMS, "interactions": EDGES, "seed": 3} | changes
    return expand(SyntheticOptions(expand=real, output=output, **options), read_dataset)


def test_sizes_ids_and_structure(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.synthetic.fractal.ITEM_GROUP", 70)
    log, items = _grow(real, tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["interactions.parquet", "items.parquet"]
    pairs = pq.read_table(log).select(["user", "item"])
    assert pairs.num_rows == EDGES
    assert pairs.group_by(["user", "item"]).aggregate([]).num_rows == EDGES
    assert len(pairs["user"].unique()) == USERS
    catalogue = pq.read_table(items)["item"].to_pylist()
    assert len(set(catalogue)) == ITEMS
    assert set(pairs["item"].to_pylist()) <= set(catalogue)
    # Every pair is a repetition of a real one, and in the first block of items all originals are there.
    known = pq.read_table(real / "interactions.parquet")
    original = set(zip(known["user"].to_pylist(), known["item"].to_pylist(), strict=True))
    grown = {
        (user.rsplit(".", 1)[0], item.rsplit(".", 1)[0])
        for user, item in zip(pairs["user"].to_pylist(), pairs["item"].to_pylist(), strict=True)
    }
    assert grown == original
    assert pq.ParquetFile(items).num_row_groups == 5


def test_blocks_have_a_power_law_and_communities(real: Path, tmp_path: Path) -> None:
    log, _ = _grow(real, tmp_path / "a", users=REAL_USERS * 16, items=REAL_ITEMS * 16, interactions=10_000)
    pairs = pq.read_table(log)
    user, item = (
        np.array([int(text.rsplit(".", 1)[1]) for text in pairs[name].to_pylist()]) for name in ("user", "item")
    )
    counts = np.zeros((16, 16))
    np.add.at(counts, (user, item), 1)
    assert counts.sum(axis=1).max() > 3 * counts.sum(axis=1).min()
    assert counts.sum(axis=0).max() > 3 * counts.sum(axis=0).min()
    share = counts / counts.sum(axis=1, keepdims=True)
    assert share[:8, :8].sum(axis=1).mean() > 1.5 * share[8:, :8].sum(axis=1).mean()


def test_equal_options_give_equal_files(real: Path, tmp_path: Path) -> None:
    first, again, other = (_grow(real, tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    for path, same, differs in zip(first, again, other, strict=True):
        assert path.read_bytes() == same.read_bytes()
        assert path.read_bytes() != differs.read_bytes()


def test_features_are_the_originals_and_recognisable(real: Path, tmp_path: Path) -> None:
    _, items = _grow(real, tmp_path / "a", modalities={"text": Width(6), "image": Width(5, "float16")})
    table = pq.read_table(items)
    assert table.schema.names == ["item", "text", "image"]
    assert table.schema.field("image").type == pa.list_(pa.float16(), 5)
    known = np.stack(pq.read_table(real / "items.parquet")["text"].to_numpy())
    rows = np.stack(table["text"].to_numpy())
    np.testing.assert_array_equal(rows[:REAL_ITEMS], known)
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (known, rows[REAL_ITEMS:])]
    nearest = (unit[1] @ unit[0].T).argmax(axis=1)
    assert (nearest == np.arange(len(nearest)) % REAL_ITEMS).mean() > 0.3  # chance: 0.025
    assert np.abs(rows[REAL_ITEMS : 2 * REAL_ITEMS] - known).max() > 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"users": 59}, "synthetic.sizes"),
        ({"items": 39}, "synthetic.sizes"),
        ({"interactions": USERS - 1}, "synthetic.sizes"),
        ({"interactions": 10**7}, "synthetic.sizes"),
        ({"modalities": {"sound": Width(3)}}, "features.unknown"),
        ({"modalities": {"image": Width(13)}}, "option.pca"),
    ],
)
def test_refused(real: Path, tmp_path: Path, changes: dict[str, object], code: str) -> None:
    with pytest.raises(InputError) as caught:
        _grow(real, tmp_path / "a", **changes)
    assert caught.value.code == code
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize(
    ("sizes", "code"),
    [
        ({"users": 100, "items": 100}, "synthetic.sizes"),
        ({"users": 100, "items": 100, "interactions": 1000, "clusters": 3}, "synthetic.clusters"),
    ],
)
def test_refused_options(tmp_path: Path, sizes: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        SyntheticOptions(expand=tmp_path, output=tmp_path / "a", **sizes)
    assert caught.value.code == code
