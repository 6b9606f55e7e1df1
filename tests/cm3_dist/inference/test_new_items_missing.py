"""New items without features of a modality are treated as `--missing` treated the catalogue's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cm3_dist import fit, load_run, prepare
from cm3_dist.inference.cold_start import place_items
from cm3_dist.inference.cold_start_inputs import read_new_items
from partition.errors import InputError

ITEMS = 30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log; an items table, of which 3, 7 and 9 have no image; and new items, of which the second has none."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    user, item = np.nonzero(rng.random((40, ITEMS)) < 0.25)
    (folder / "data").mkdir()
    pq.write_table(pa.table({"user": user, "item": item}), folder / "data" / "log.parquet")

    def items(ids: list[int], without: set[int]) -> pa.Table:
        image = [None if number in without else rng.normal(size=4) for number in ids]
        return pa.table(
            {
                "item": ids,
                "image": pa.array(image, pa.list_(pa.float32())),
                "text": list(rng.normal(size=(len(ids), 3))),
            }
        )

    pq.write_table(items(list(range(ITEMS)), {3, 7, 9}), folder / "data" / "items.parquet")
    pq.write_table(items([100, 101, 102], {101}), folder / "new.parquet")
    return folder


def trained(made: Path, choice: str) -> Path:
    run = made / f"run-{choice}"
    if not run.exists():
        prepared = prepare(made / "data", made / choice, parts=2, missing=[f"image={choice}"], quiet=True)
        fit(prepared, run, train={"epochs": 1}, model={"dim": 8}, machine={"device": "cpu"}).close()
    return run


@pytest.mark.parametrize("choice", ["mask", "zeros"])
def test_they_are_placed(made: Path, choice: str, tmp_path: Path) -> None:
    with load_run(trained(made, choice)) as run:
        model = run._open()
        new = read_new_items(made / "new.parquet", model, tmp_path)
        assert new.ids.to_pylist() == [100, 101, 102]
        assert not new.features["image"][1].any()
        assert {name: mask.tolist() for name, mask in new.missing.items()} == (
            {"image": [False, True, False]} if choice == "mask" else {}
        )
        placed = place_items(model, new.ids, new.features, new.missing)
        image = placed.ego[1, :8]
        assert bool(image.any()) == (choice == "zeros")
        # An item of the catalogue that lacks its image has no such channel before propagation either.
        row = int(model.item_ids.find(pa.array([7]))[0])
        assert bool(model.item_ego[row, :8].any()) == (choice == "zeros")
        lists = run.recommend(k=ITEMS, new_items=made / "new.parquet")
        assert {100, 101, 102} <= set(lists["item"].to_pylist())


@pytest.mark.parametrize("choice", ["mean", "drop"])
def test_they_are_refused_in_one_line(made: Path, choice: str, tmp_path: Path) -> None:
    with load_run(trained(made, choice)) as run:
        model = run._open()
        with pytest.raises(InputError) as caught:
            read_new_items(made / "new.parquet", model, tmp_path)
    assert caught.value.code == "features.missing"
    first = f"1 of 3 new items has no image; first: {made / 'new.parquet'}, row 1; "
    assert (
        str(caught.value)
        == f"{first}prepare the data with --missing image=mask or zeros, not {choice}, and train again"
    )
