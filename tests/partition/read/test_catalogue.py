from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from partition.read import feature_rows
from tests.support.raw_tables import (
    EXPECTED,
    Maker,
    Refused,
    features,
    folder,
    items,
    items_table,
    mapping,
    mmrec,
    pairs,
    read,
    table,
    write,
)


def test_mmrec_mapping_files_give_the_external_ids(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", [(0, 2, 0), (1, 0, 0)])
    (folder / "i_id_mapping.csv").write_text("asin\titemID\n007\t1\nB0A\t0\nB0D\t3\nB0C\t2\n")
    (folder / "u_id_mapping.csv").write_text("user_id\tuserID\nAmy\t1\nBob\t0\nCid\t2\n")
    dataset = read(tmp_path, folder)
    assert dataset.item_ids.to_pylist() == ["B0A", "007", "B0C", "B0D"]
    assert pairs(dataset) == [("Amy", "B0A", 0), ("Bob", "B0C", 0)]
    assert sorted(dataset.inputs) == [
        "i_id_mapping.csv",
        "image_feat.npy",
        "text_feat.npy",
        "tiny.inter",
        "u_id_mapping.csv",
    ]


def test_tables_are_matched_by_id_and_numpy_files_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_rows, "BATCH", 2)
    log = write(tmp_path / "log.csv", table())
    order = write(tmp_path / "items.csv", pa.table({"item": list("cabd")}))
    other = write(tmp_path / "other.parquet", items_table(list("abcd"), 2).rename_columns(["asin", "vec", "text"]))
    np.save(tmp_path / "sound.npy", np.arange(8, dtype=np.float32).reshape(4, 2))
    chosen = [f"sound={tmp_path / 'sound.npy'}", f"image={other}:vec", f"text={other}"]
    dataset = read(tmp_path, log, order, features=chosen)
    assert dataset.item_ids.to_pylist() == list("cabd")
    assert list(dataset.features) == ["sound", "image", "text"]  # as given
    assert dataset.features["image"].values.tolist() == [[4, 5], [0, 1], [2, 3], [6, 7]]
    assert dataset.features["sound"].values.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert pairs(dataset) == EXPECTED
    # Without an items table the first table of features is the catalogue.
    dataset = read(tmp_path, log, features=chosen[1:])
    assert dataset.item_ids.to_pylist() == list("abcd")


def test_modalities_found_can_be_chosen_and_ordered(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", [(0, 2, 0), (1, 0, 0)])
    np.save(folder / "audio_feat.npy", np.ones((4, 2), np.float32))
    assert list(read(tmp_path, folder).features) == ["image", "audio", "text"]
    assert list(read(tmp_path, folder, features=["text", "image"]).features) == ["text", "image"]


def log_and_mmrec(path: Path) -> Sequence[Path]:
    log = write(path / "log.csv", table())
    mmrec(path / "tiny", [(0, 2, 0), (1, 0, 1)])
    return [log]


def three_items_and_mmrec(path: Path) -> Sequence[Path]:
    mmrec(path / "tiny", [(0, 2, 0), (1, 0, 1)])
    return items(items_table("abc"))(path)


def more(ids: str) -> Maker:
    def make(path: Path) -> Sequence[Path]:
        write(path / "more.parquet", items_table(ids))
        return items(items_table())(path)

    return make


def spaced_name(tiny: Path) -> None:
    np.save(tiny / "a b_feat.npy", np.zeros((4, 3), np.float32))


MORE = {"features": ["image", "sound=more.parquet:text"]}
BY_ROW = {"features": ["text=tiny/text_feat.npy"]}
REFUSED = {
    "no features": Refused(lambda path: [write(path / "log.csv", table())], "features.missing", "log.csv: "),
    "no feature file": Refused(folder(), "file.missing", "none.npy: ", {"features": ["image=none.npy"]}),
    "unknown modality": Refused(folder(), "features.unknown", "--features video: ", {"features": ["video"]}),
    "modality twice": Refused(folder(), "features.duplicate", "--features: ", {"features": ["text", "text"]}),
    "bad modality name": Refused(folder(spaced_name), "features.name", "--features: 'a b' "),
    "rows of two files differ": Refused(
        features(np.zeros((5, 3), np.float32)), "features.rows", "tiny/text_feat.npy: 5 rows"
    ),
    "item beyond the rows": Refused(
        folder(rows=[(0, 1, 0), (0, 4, 0)]),
        "features.missing",
        "tiny/tiny.inter: column 'itemID': 1 of 2 interactions are with an item that has no features "
        "(tiny/image_feat.npy ends with row 3); first: row 1 (line 3), '4';",
    ),
    "item before the rows": Refused(
        folder(rows=[(0, 1, 0), (0, -1, 0)]), "features.missing", "tiny/tiny.inter: column 'itemID': 1 of 2 "
    ),
    "item not in the table": Refused(
        items(items_table("ab")), "features.missing", "log.csv: column 'item': 2 of 6 interactions "
    ),
    "item twice in the table": Refused(
        items(items_table("abcb")), "ids.duplicate", "items.parquet: column 'item', row 3: 'b' "
    ),
    "text ids and numpy rows": Refused(
        log_and_mmrec, "ids.text", "log.csv: column 'item': ", {"features": ["image=tiny/image_feat.npy"]}
    ),
    "rows of numpy and table differ": Refused(
        three_items_and_mmrec, "features.rows", "tiny/text_feat.npy: 4 rows", BY_ROW
    ),
    "no such list column": Refused(
        items(items_table()),
        "features.column",
        "items.parquet: column 'sound': ",
        {"features": ["sound=items.parquet"]},
    ),
    "second table lacks an item": Refused(
        more("abc"), "features.missing", "1 of 4 items has no sound; first: item 'd', which has no row; ", MORE
    ),
    "second table has one more": Refused(more("abcde"), "features.rows", "more.parquet: column 'item', row 4: ", MORE),
    "mapping without an item": Refused(
        mapping("asin\titemID\nA\t0\nB\t2\nC\t3\n"), "mapping.incomplete", "tiny/i_id_mapping.csv: column 'itemID': 1 "
    ),
    "mapping with an id twice": Refused(
        mapping("asin\titemID\nA\t0\nB\t1\nA\t2\nC\t3\n"),
        "ids.duplicate",
        "tiny/i_id_mapping.csv: column 'asin', row 2 (line 4): 'A' ",
    ),
    "mapping of other columns": Refused(mapping("a\tb\nA\t0\n"), "mapping.columns", "tiny/i_id_mapping.csv: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    REFUSED[case].check(tmp_path)
