"""`--missing`: what counts as missing, and what each choice makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partition.errors import InputError
from partition.options import Missing, missing_choices
from tests.support.raw_tables import ITEMS, LABELS, USERS, mmrec, pairs, read, table, write

ROWS = np.array([[1.0, 2.0], [0, 0], [3.0, 6.0], [0, 0]], np.float32)  # of the items a, b, c, d; b and d have none
MASK = np.array([False, True, False, True])
NAN = float("nan")


def one_table(folder: Path, image: Any, **columns: Any) -> list[Path]:
    text = pa.array([[1.0, 0.0, 1.0]] * 4)
    content = pa.table({"item": list("abcd"), "image": image, "text": text, **columns})
    return [write(folder / "log.csv", table()), write(folder / "items.arrow", content)]


def lists(second: Any, last: Any, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([[1.0, 2.0], second, [3.0, 6.0], last], kind or pa.list_(pa.float32()))


def table_without_rows(folder: Path) -> list[Path]:
    write(folder / "log.csv", table())
    write(folder / "items.csv", pa.table({"item": list("abcd")}))
    image = pa.table({"item": list("ca"), "image": pa.array([[3.0, 6.0], [1.0, 2.0]], pa.list_(pa.float32()))})
    write(folder / "image.parquet", image)
    return [folder / "log.csv", folder / "items.csv"]


def numpy_file(folder: Path) -> list[Path]:
    np.save(folder / "image.npy", np.where(MASK[:, None], np.float32(NAN), ROWS))
    return one_table(folder, pa.array(["x"] * 4))


FORMS: dict[str, Any] = {
    "null lists": lambda folder: one_table(folder, lists(None, None)),
    "empty lists": lambda folder: one_table(folder, lists([], [])),
    "NaN and null": lambda folder: one_table(folder, lists([NAN, NAN], [None, NAN])),
    "NaN of another length": lambda folder: one_table(folder, lists([NAN], [None, None, None])),
    "fixed size": lambda folder: one_table(folder, lists(None, [None, None], pa.list_(pa.float32(), 2))),
    "lists of lists": lambda folder: one_table(
        folder, pa.array([[[1.0, 2.0]], None, [[3.0, 6.0]], [None]], pa.list_(pa.list_(pa.float32())))
    ),
    "flags": lambda folder: one_table(
        folder, lists([9.0, 9.0], [0.0, 0.0]), missing=pa.array([False, True, None, True])
    ),
    "first row": lambda folder: one_table(folder, lists(None, None)),
    "no rows": table_without_rows,
    "numpy": numpy_file,
}
OPTIONS = {
    "no rows": {"features": ["image=image.parquet"]},
    "numpy": {"features": ["image=image.npy"]},
    "flags": {"features": ["image"]},  # the flags of a table hold for all its modalities
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def options(form: str, *missing: str) -> dict[str, Any]:
    return {**OPTIONS.get(form, {}), "missing": list(missing)}


@pytest.mark.parametrize("form", FORMS)
def test_refused_with_their_number_the_first_and_the_option(tmp_path: Path, form: str) -> None:
    places = FORMS[form](Path())
    with pytest.raises(InputError) as caught:
        read(tmp_path, *places, **options(form))
    first = {"no rows": "item 'b', which has no row", "numpy": "image.npy, row 1"}.get(form, "items.arrow, row 1")
    remedy = "choose with --missing image=zeros|mean|drop|mask"
    assert str(caught.value) == f"2 of 4 items have no image; first: {first}; {remedy}"
    assert caught.value.code == "features.missing"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("named", [True, False])
def test_zeros_mean_and_mask(tmp_path: Path, form: str, named: bool) -> None:
    places = FORMS[form](Path())
    for choice, filled in (("zeros", [0, 0]), ("mask", [0, 0]), ("mean", [2, 4])):
        dataset = read(tmp_path, *places, **options(form, f"image={choice}" if named else choice))
        features = dataset.features["image"]
        np.testing.assert_array_equal(features.values, np.where(MASK[:, None], filled, ROWS))
        if choice == "mask":
            np.testing.assert_array_equal(features.missing, MASK)
        else:
            assert features.missing is None
        assert dataset.counts["missing_image"] == 2
        assert "missing_text" not in dataset.counts
        assert pairs(dataset) == sorted(zip(USERS, ITEMS, LABELS, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kcore", [0, 1])
def test_drop(tmp_path: Path, form: str, kcore: int) -> None:
    dataset = read(tmp_path, *FORMS[form](Path()), **options(form, "image=drop"), kcore=kcore)
    assert dataset.item_ids.to_pylist() == ["a", "c"]
    np.testing.assert_array_equal(dataset.features["image"].values, ROWS[[0, 2]])
    assert dataset.features["image"].missing is None
    # u3 had b for training and c; u2's a and c stay; u1 keeps only a held-out item, so it is left out of evaluation.
    assert pairs(dataset) == [("u2", "a", 2), ("u2", "c", 0), ("u3", "c", 0)]
    assert dataset.counts["missing_image"] == 2
    assert dataset.counts["missing_interactions_dropped"] == 2


def test_drop_leaves_out_users_without_interactions_and_refuses_to_leave_nothing(tmp_path: Path) -> None:
    _, items = one_table(Path(), lists(None, None))
    log = write(Path("log.csv"), pa.table({"user": ["u1", "u2", "u3"], "item": ["b", "a", "c"], "split": [0, 0, 0]}))
    dataset = read(tmp_path, log, items, missing=["drop"])
    assert dataset.user_ids.to_pylist() == ["u2", "u3"]
    only = write(Path("only.csv"), pa.table({"user": ["u1"], "item": ["b"], "split": [0]}))
    with pytest.raises(InputError, match="--missing drop: no interaction is left") as caught:
        read(tmp_path, only, items, missing=["drop"])
    assert caught.value.code == "rows.none"


def test_items_that_the_core_leaves_out_need_no_features(tmp_path: Path) -> None:
    image = lists([5.0, 5.0], None)  # d, which has no interaction
    dataset = read(tmp_path, *one_table(Path(), image), kcore=1)
    assert dataset.item_ids.to_pylist() == ["a", "b", "c"]
    assert "missing_image" not in dataset.counts


def test_the_first_that_is_missing_of_those_that_stay_is_named(tmp_path: Path) -> None:
    image = pa.array([[1.0], None, None, None])
    log = pa.table({"user": ["u1", "u1"], "item": ["a", "c"], "split": [0, 0]})
    _, items = one_table(Path(), image)
    with pytest.raises(InputError, match=r"1 of 2 items has no image; first: items\.arrow, row 2; "):
        read(tmp_path, write(Path("log.csv"), log), items, kcore=1)


def test_a_choice_without_anything_missing_changes_nothing(tmp_path: Path) -> None:
    places = one_table(Path(), lists([5.0, 5.0], [7.0, 8.0]))
    plain = read(tmp_path, *places)
    for choice in Missing:
        chosen = read(tmp_path, *places, missing=[choice.value])
        assert chosen.counts == plain.counts
        assert chosen.features["image"].missing is None
        np.testing.assert_array_equal(chosen.features["image"].values, plain.features["image"].values)


def test_the_mean_is_of_the_items_that_stay_and_goes_through_pca(tmp_path: Path) -> None:
    image = pa.array([[1.0, 2.0], None, [3.0, 6.0], [100.0, 100.0]])
    dataset = read(tmp_path, *one_table(Path(), image), kcore=1, missing=["mean"])
    np.testing.assert_array_equal(dataset.features["image"].values[1], [2, 4])
    reduced = read(tmp_path, *one_table(Path(), image), kcore=1, missing=["mean"], pca=["image=1"]).features["image"]
    basis = reduced.basis
    assert basis is not None
    np.testing.assert_allclose(reduced.values[1], [2, 4] @ np.asarray(basis), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_rows_keep_their_precision(tmp_path: Path, dtype: type) -> None:
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)))
    image = pa.array([np.array([1, 2], dtype), None, np.array([3, 6], dtype), None], kind)
    for choice in ("zeros", "mean", "mask"):
        values = read(tmp_path, *one_table(Path(), image), missing=[choice]).features["image"].values
        assert values.dtype == dtype


@pytest.mark.parametrize("choice", [choice.value for choice in Missing])
def test_all_missing_is_refused_whatever_the_choice(tmp_path: Path, choice: str) -> None:
    with pytest.raises(InputError, match=r"column 'image': all 4 rows are missing") as caught:
        read(tmp_path, *one_table(Path(), pa.array([None] * 4, pa.list_(pa.float32()))), missing=[choice])
    assert caught.value.code == "features.missing"


def test_a_single_nan_is_an_error_whatever_the_choice(tmp_path: Path) -> None:
    for image, rows in ((lists([NAN, 1.0], [None, 2.0]), 2), (lists([1.0, NAN], None), 1)):
        with pytest.raises(InputError, match=rf"column 'image', row 1: .*; {rows} of 4 rows$") as caught:
            read(tmp_path, *one_table(Path(), image), missing=["zeros"])
        assert caught.value.code == "features.value"


def test_noise_moves_masks_with_their_rows(tmp_path: Path) -> None:
    dataset = read(tmp_path, *one_table(Path(), lists(None, None)), missing=["mask"], noise=1.0)
    features = dataset.features["image"]
    assert features.missing is not None
    np.testing.assert_array_equal(features.missing, ~np.asarray(features.values).any(axis=1))
    assert not np.array_equal(features.missing, MASK)


def test_an_mmrec_folder_with_rows_of_nan(tmp_path: Path) -> None:
    folder = mmrec(Path("tiny"), [(0, 2, 0), (1, 0, 0)])
    np.save(folder / "text_feat.npy", np.where(MASK[:, None], NAN, np.repeat(ROWS, 2, axis=1)))
    with pytest.raises(InputError, match=r"^2 of 4 items have no text; first: tiny/text_feat\.npy, row 1; "):
        read(tmp_path, folder)
    assert read(tmp_path, folder, missing=["text=mask"]).counts["missing_text"] == 2


def test_choices() -> None:
    names = ["image", "text"]
    assert missing_choices([], names) == {"image": Missing.REFUSE, "text": Missing.REFUSE}
    assert missing_choices(["text=mask", "mean"], names) == {"image": Missing.MEAN, "text": Missing.MASK}
    assert missing_choices(["zeros", "text=drop"], names) == {"image": Missing.ZEROS, "text": Missing.DROP}


@pytest.mark.parametrize(
    ("text", "code"), [("video=mask", "features.unknown"), ("guess", "option.missing"), ("text=", "option.missing")]
)
def test_refused_choices(text: str, code: str) -> None:
    with pytest.raises(InputError, match="--missing") as caught:
        missing_choices([text], ["image", "text"])
    assert caught.value.code == code
