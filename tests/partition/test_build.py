from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from partition.transform.dataset import TRAIN
from tests.support.raw_tables import read


@pytest.mark.parametrize(
    ("name", "users", "items", "sizes", "modalities"),
    [
        ("baby", 19_445, 7_050, (118_551, 20_559, 21_682), ["image", "text"]),
        ("tiktok", 9_308, 6_710, (59_541, 3_051, 6_130), ["image", "audio"]),
    ],
)
def test_counts_of_real_data(
    shared_data: Path, tmp_path: Path, name: str, users: int, items: int, sizes: tuple[int, ...], modalities: list[str]
) -> None:
    dataset = read(tmp_path, shared_data / name)
    assert (len(dataset.user_ids), len(dataset.item_ids)) == (users, items)
    assert (dataset.split == TRAIN).sum() == sizes[0]
    assert len(dataset.split) + dataset.counts["heldout_dropped"] == sum(sizes)
    assert list(dataset.features) == modalities
    assert dataset.counts["duplicates_merged"] == 0
    if name == "tiktok":
        assert (np.bincount(dataset.item[dataset.split == TRAIN], minlength=items) == 0).sum() == 465
        assert dataset.features["audio"].values.dtype == np.float16
    if name == "baby":
        assert dataset.item_ids[1].as_py() == "9729375011"
        # The field's own split of Baby rounds 8:1:1 as ours does.
        labels = read(tmp_path, shared_data / name, split="random").split
        assert tuple(np.bincount(labels)) == sizes
