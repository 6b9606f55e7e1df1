from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from partition.errors import InputError
from partition.read.sources import find
from partition.read.table_file import TableFile, open_table
from partition.read.usage import refuse_unread_labels, report


def log(path: Path, suffix: str = "parquet", **columns: Any) -> TableFile:
    table = pa.table({"user_id": ["u"] * 4, "item_id": ["a"] * 4, **columns})
    file = path / f"log.{suffix}"
    {"parquet": pq.write_table, "csv": csv.write_csv, "feather": feather.write_feather}[suffix](table, str(file))
    return open_table(file)


def test_two_lines(tmp_path: Path) -> None:
    log(tmp_path, rating=[1] * 4, event=["buy"] * 4, timestamp=[1] * 4, x_label=[0] * 4, label=[1] * 4, note=["x"] * 4)
    items = pa.table({"item_id": ["a"], "text": [[1.0]], "tags": [["new"]]})
    pq.write_table(items, tmp_path / "items.parquet")
    (tmp_path / "notes.docx").touch()
    (tmp_path / "readme.txt").touch()
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "image_feat.npy").touch()
    (tmp_path / "sound_feat.npz").touch()
    found = find([str(tmp_path)], {})
    tables = {found.interactions[0]: ["user_id", "item_id", "x_label"], found.items[0]: ["item_id", "text"]}
    used, unused = report(found, tables, [found.features["image"]])
    assert used == "used: log.parquet (user_id, item_id, x_label), items.parquet (item_id, text), image_feat.npy"
    assert unused == (
        "not used: rating (see --min-rating, --weight-column), event (see --event-weight), "
        "timestamp (see --split time, --split leave-last-out), label (see --where), note, "
        "tags (holds lists of string, not of numbers), _SUCCESS (its name begins with _), notes.docx (no table), "
        "readme.txt (give it with --input if it is a table), sound_feat.npz (see --features)"
    )
    assert (
        report(find([str(tmp_path / "log.parquet")], {}), {found.interactions[0]: found.interactions[0].names})[1] == ""
    )


def test_many_files_and_columns_are_counted(tmp_path: Path) -> None:
    columns = {f"c{k:02}": [1] for k in range(30)}
    for part in range(12):
        pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"], **columns}), tmp_path / f"{part}.parquet")
    found = find([str(tmp_path)], {})
    used, unused = report(found, {table: ["user_id", "item_id"] for table in found.interactions})
    assert used == "used: 12 files (user_id, item_id)"
    assert unused == f"not used: {', '.join(list(columns)[:20])} and 10 more"


def test_files_of_one_name_are_counted(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        log(tmp_path / f"day={day}")
    found = find([str(tmp_path)], {})
    used, unused = report(found, {table: ["user_id", "item_id"] for table in found.interactions})
    assert (used, unused) == ("used: 2 files (user_id, item_id)", "not used: day")


ZERO = {
    "numbers": ([0, 1, 1, 0], "= 1"),
    "floats": ([0.0, 1.0, 1.0, 0.0], "= 1"),
    "booleans": ([False, True, True, False], "= true"),
    "text": (["0", "1", "1", "0"], "= '1'"),
}


@pytest.mark.parametrize("name", ["label", "Target", "is_click:float", "like"])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "feather"])
@pytest.mark.parametrize("case", ZERO)
def test_labels_of_0_are_refused(tmp_path: Path, case: str, suffix: str, name: str) -> None:
    values, condition = ZERO[case]
    file = log(tmp_path, suffix, **{name: values})
    with pytest.raises(InputError) as caught:
        refuse_unread_labels(file, None)
    assert caught.value.code == "column.label"
    if suffix == "csv":  # text by its format, which is read as numbers where it can be
        condition = {"booleans": "= 'true'"}.get(case, "= 1")
    quoted = name if ":" not in name else f'\\"{name}\\"'
    message = f"{file.path}: column {name!r}: 2 of 4 rows have a 0, which nothing reads; "
    assert str(caught.value).startswith(f'{message}keep the others with --where "{quoted} {condition}"')
    with pytest.raises(InputError):
        refuse_unread_labels(file, "my_label = 1 or labels = 2 or targeted = 1")
    refuse_unread_labels(file, f"{name} = 1")
    refuse_unread_labels(file, f'"{name}" >= 0'.upper())
    refuse_unread_labels(file, None, used=[name])


@pytest.mark.parametrize("values", [[1, 2, 1, 1], [1, None, 1, 1], ["yes", "no", None, "1"], [1.5, -1.0, 2.0, 1.0]])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "feather"])
def test_labels_without_a_0_pass(tmp_path: Path, suffix: str, values: list[Any]) -> None:
    refuse_unread_labels(log(tmp_path, suffix, label=values, rating=[0] * 4), None)
