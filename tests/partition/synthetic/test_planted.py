from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.errors import InputError
from partition.synthetic.options import SyntheticOptions, Width, parse_modalities
from partition.synthetic.planted import synthesise
from partition.transform.dataset import TEST, TRAIN
from tests.support.raw_tables import read

SIZES: dict[str, Any] = {"users": 400, "items": 200, "interactions": 4000, "clusters": 8, "seed": 1}


def test_synthetic_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        synthesise(SyntheticOptions(output=tmp_path / name, **SIZES, modalities={"image": Width(12), "text": Width(6)}))
    for name in ("interactions.parquet", "items.parquet"):
        assert pq.read_table(tmp_path / "a" / name).equals(pq.read_table(tmp_path / "b" / name))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["interactions.parquet", "items.parquet"]
    dataset = read(tmp_path, tmp_path / "a")
    assert dataset.counts["duplicates_merged"] == 0
    assert len(dataset.user) == 4000
    assert dataset.user_ids[3].as_py() == "user-000003"
    degree, popularity = np.bincount(dataset.user), np.sort(np.bincount(dataset.item))[::-1]
    assert degree.min() >= 5
    assert degree.max() > 3 * degree.mean()
    assert popularity[:20].sum() > 0.25 * popularity.sum()
    # Whoever follows the features finds a user's test items, popularity alone does not.
    train = np.zeros((400, 200))
    train[dataset.user[dataset.split == TRAIN], dataset.item[dataset.split == TRAIN]] = 1
    image = dataset.features["image"].values / np.linalg.norm(dataset.features["image"].values, axis=1, keepdims=True)
    hidden, recall = dataset.split == TEST, []
    for scores in (train @ np.maximum(image @ image.T, 0) ** 4, np.tile(train.sum(axis=0), (400, 1))):
        scores[train > 0] = -np.inf
        top = np.argsort(-scores, axis=1)[:, :20]
        recall.append((top[dataset.user[hidden]] == dataset.item[hidden][:, None]).any(axis=1).mean())
    assert recall[0] > 1.3 * recall[1]


def test_synthetic_data_in_blocks_and_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.synthetic.tables.ROW_GROUP", 100)
    monkeypatch.setattr("partition.synthetic.tables.ITEM_GROUP", 7)
    modalities = {"image": Width(4, "float16")}
    log, items = synthesise(
        SyntheticOptions(
            output=tmp_path, users=50, items=20, interactions=500, clusters=3, modalities=modalities, seed=1
        )
    )
    assert pq.ParquetFile(log).num_row_groups == pq.ParquetFile(items).num_row_groups + 2 == 5
    rows = pq.read_table(log)
    assert len(set(zip(rows["user"].to_pylist(), rows["item"].to_pylist(), strict=True))) == 500  # half of all pairs
    assert pq.read_schema(items).field("image").type == pa.list_(pa.float16(), 4)
    assert parse_modalities("image:64, text:32:float16") == {"image": Width(64), "text": Width(32, "float16")}


@pytest.mark.parametrize("text", ["image", "image:0", "image:4,image:4", "image:4,", "a b:4"])
def test_refused_modalities(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_modalities(text)
    assert caught.value.code == "synthetic.modalities"


@pytest.mark.parametrize(
    ("interactions", "clusters", "code"),
    [(51, 2, "synthetic.sizes"), (9, 2, "synthetic.sizes"), (20, 11, "synthetic.clusters")],
)
def test_refused_sizes(tmp_path: Path, interactions: int, clusters: int, code: str) -> None:
    options = SyntheticOptions(
        output=tmp_path / "data", users=10, items=10, interactions=interactions, clusters=clusters
    )
    with pytest.raises(InputError) as caught:
        synthesise(options)
    assert caught.value.code == code
    assert not (tmp_path / "data").exists()
