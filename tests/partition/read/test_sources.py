from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.raw_tables import (
    EXPECTED,
    ITEMS,
    USERS,
    Refused,
    folder,
    items_table,
    logged,
    mmrec,
    pairs,
    read,
    table,
    text,
    two_logs,
    write,
)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "feather"])
def test_a_folder_of_shards_in_any_row_order(tmp_path: Path, suffix: str) -> None:
    folder, order = tmp_path / "logs", np.random.default_rng(0).permutation(len(USERS))
    folder.mkdir()
    shuffled = table().take(pa.array(order))
    write(folder / f"2.{suffix}", shuffled.slice(0, 4))
    write(folder / f"1.{suffix}", shuffled.slice(4))
    write(folder / "items.parquet", items_table())
    (folder / "notes.txt").write_text("not a table")
    (folder / ".hidden.csv").write_text("nor this")
    dataset = read(tmp_path, folder)
    assert pairs(dataset) == EXPECTED
    assert dataset.user_ids.to_pylist() == ["u1", "u2", "u3"]
    assert dataset.name == "logs"


def test_an_mmrec_folder_as_it_is(tmp_path: Path) -> None:
    folder = mmrec(tmp_path / "tiny", [(0, 2, 0), (0, 0, 1), (7, 2, 0), (7, 1, 2)])
    (folder / "meta.csv").write_text("itemID,title\n0,x\n")  # MMRec folders hold other files as well
    dataset = read(tmp_path, folder)
    assert pairs(dataset) == [(0, 0, 1), (0, 2, 0), (7, 1, 2), (7, 2, 0)]
    assert dataset.item_ids.to_pylist() == [0, 1, 2, 3]  # item 3 has features but no interaction
    assert dataset.user_ids.type == dataset.item_ids.type == pa.int64()
    assert {name: f.values.dtype for name, f in dataset.features.items()} == {"image": np.float16, "text": np.float64}
    assert isinstance(dataset.features["image"].values, np.memmap)
    assert dataset.name == "tiny"


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["uid", "asin", "x_label"], {}),
        (["USER_ID", "Item", "Split"], {}),
        (["user_id:token", "item_id:token", "x_label:float"], {}),
        (["who", "what", "fold"], {"user_column": "who", "item_column": "what", "split_column": "fold"}),
    ],
)
def test_column_names_are_guessed_or_given(tmp_path: Path, names: list[str], options: dict[str, str]) -> None:
    log = write(tmp_path / "log.parquet", table().rename_columns(names))
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()), **options)
    assert pairs(dataset) == EXPECTED


def several_logs(tiny: Path) -> None:
    (tiny / "tiny.inter").unlink()
    for number in (1, 2):
        (tiny / f"x{number}.inter").write_text("")


LAST = {"split": "leave-last-out"}
REFUSED = {
    "no input": Refused(lambda path: [path / "none"], "file.missing", "none: "),
    "empty folder": Refused(lambda path: [path], "table.missing"),
    "no header": Refused(text("0\t1\t0\n", "log.tsv"), "column.missing", "log.tsv: no user column"),
    "no user column": Refused(logged(user=None), "column.missing", "log.csv: no user column (user, user_id,"),
    "no item column": Refused(logged(item=None), "column.missing", "log.csv: no item column"),
    "column given but missing": Refused(logged(), "column.missing", "log.csv: no column 'who'", {"user_column": "who"}),
    "ambiguous column": Refused(logged(asin=ITEMS), "column.ambiguous", "log.csv: columns 'item' and 'asin'"),
    "no split column": Refused(logged(split=None), "column.missing", "log.csv: no split", {"split": "column"}),
    "split in one file only": Refused(
        two_logs({"user": ["u"], "item": ["a"], "split": [0]}, {"user": ["u"], "item": ["a"]}),
        "column.missing",
        "1.parquet: no split column",
    ),
    "no time column": Refused(logged(), "column.missing", "log.csv: no time column", LAST),
    "several logs in an MMRec folder": Refused(folder(several_logs), "table.ambiguous", "tiny: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    REFUSED[case].check(tmp_path)
