from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from partition.transform import pca
from partition.transform.pca import reduce
from tests.support.raw_tables import (
    EXPECTED,
    Refused,
    cut,
    features,
    folder,
    items,
    mmrec,
    pairs,
    read,
    table,
    write,
)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_list_columns_of_any_precision(tmp_path: Path, dtype: type, fixed: bool, suffix: str) -> None:
    values: np.ndarray = np.random.default_rng(0).standard_normal((4, 5)).astype(dtype)
    flat = pa.array(values.ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, 5) if fixed else pa.ListArray.from_arrays(np.arange(0, 21, 5), flat)
    items = write(tmp_path / f"items.{suffix}", pa.table({"sku": list("dbca"), "image": lists, "title": list("wxyz")}))
    log = write(tmp_path / "log.csv", table().rename_columns(["user", "sku", "split"]))
    dataset = read(tmp_path, log, items, item_column="sku")
    assert dataset.item_ids.to_pylist() == list("dbca")  # the items table's order is the catalogue's
    assert list(dataset.features) == ["image"]
    assert dataset.features["image"].values.dtype == dtype
    np.testing.assert_array_equal(dataset.features["image"].values, values)
    assert pairs(dataset) == EXPECTED


def test_pca_equals_the_singular_value_decomposition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "BLOCK_BYTES", 17 * 12 * 8)  # several uneven blocks
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((200, 12)) * np.geomspace(10, 0.1, 12) + 3).astype(np.float32)
    values[5] = 0
    reduced, share = reduce(values, 4, tmp_path / "pca.npy")
    left, scale, right = np.linalg.svd(values.astype(np.float64), full_matrices=False)
    sign = np.sign(right[np.arange(4), np.abs(right[:4]).argmax(axis=1)])
    np.testing.assert_allclose(reduced, left[:, :4] * scale[:4] * sign, atol=1e-4)
    assert share == pytest.approx((scale[:4] ** 2).sum() / (scale**2).sum())
    assert reduced.dtype == np.float32
    assert not reduced[5].any()  # an item without features stays one


def test_pca_of_all_or_of_one_modality(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", [(0, 2, 0), (1, 0, 0)])
    np.save(folder / "text_feat.npy", np.random.default_rng(0).standard_normal((4, 5)))
    widths = {name: (f.values.shape, f.source_dim) for name, f in read(tmp_path, folder, pca=["4"]).features.items()}
    assert widths == {"image": ((4, 3), 3), "text": ((4, 4), 5)}
    features = read(tmp_path, folder, pca=["4", "text=2", "image=3"]).features
    assert features["text"].values.shape == (4, 2)
    assert features["image"].values.dtype == np.float16  # as wide as it was: untouched


def listed(values: list[list[float | None] | None]) -> pa.Table:
    return pa.table({"item": list("abcd"), "image": values})


def pickled(tiny: Path) -> None:
    np.save(tiny / "text_feat.npy", np.array([{}], object))


NOT_A_NUMBER = np.zeros((4, 3), np.float32)
NOT_A_NUMBER[2, 1] = np.nan
INFINITE = np.zeros((4, 3), np.float16)
INFINITE[3, 0] = np.inf
TEXT, IMAGE = "tiny/text_feat.npy: ", "items.parquet: column 'image', "
REFUSED = {
    "NaN": Refused(features(NOT_A_NUMBER), "features.value", f"{TEXT}row 2, column 1: the value is nan"),
    "infinite": Refused(features(INFINITE), "features.value", f"{TEXT}row 3, column 0: the value is inf"),
    "not a matrix": Refused(features(np.zeros(4, np.float32)), "features.shape", TEXT),
    "no columns": Refused(features(np.zeros((4, 0), np.float32)), "features.shape", TEXT),
    "neither floats nor integers": Refused(features(np.zeros((4, 3), bool)), "features.dtype", TEXT),
    "integers above float32": Refused(
        features(np.full((4, 3), 2**24 + 1)), "features.value", f"{TEXT}row 0, column 0: the value is 16777217, "
    ),
    "pickled": Refused(folder(pickled), "file.unreadable", TEXT),
    "torn npy": Refused(folder(cut("text_feat.npy")), "file.unreadable", TEXT),
    "empty npy": Refused(folder(cut("text_feat.npy", 0)), "file.unreadable", TEXT),
    "unequal lists": Refused(
        items(listed([[1.0, 2.0], [3.0, 4.0], [5.0], [6.0, 7.0]])), "features.shape", f"{IMAGE}row 2: "
    ),
    "missing list": Refused(
        items(listed([[1.0], [2.0], None, [4.0]])),
        "features.missing",
        "1 of 4 items has no image; first: items.parquet, row 2; ",
    ),
    "missing value": Refused(
        items(listed([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [None, 4.0]])), "features.value", f"{IMAGE}row 3: "
    ),
    "infinite in a list": Refused(items(listed([[1.0], [np.inf], [3.0], [4.0]])), "features.value", f"{IMAGE}row 1: "),
    "PCA above the width": Refused(folder(), "option.pca", "--pca text=4: ", {"pca": ["text=4"]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    REFUSED[case].check(tmp_path)
