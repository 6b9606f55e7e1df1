from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.errors import InputError
from partition.read.columns import ALIASES, Role, column_of, needed_columns
from partition.read.sources import find, split_of_name
from partition.read.table_file import TableFile, open_table
from partition.transform.dataset import TEST, TRAIN, VALIDATION

LOG = "user_id,item_id\nu,a\n"


def text(path: Path, content: str = LOG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = path.suffix.lower() == ".gz"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return path


def table(path: Path, *names: str) -> TableFile:
    return open_table(text(path / "log.csv", ",".join(names) + "\n"))


def names(tables: list[TableFile]) -> list[str]:
    return [table.place.file_name for table in tables]


def test_every_format_in_one_folder(tmp_path: Path) -> None:
    text(tmp_path / "A.CSV")
    text(tmp_path / "b.csv.gz")
    text(tmp_path / "c.Tsv", LOG.replace(",", "\t"))
    text(tmp_path / "d.NDJSON", '{"user_id": "u", "item_id": "a"}\n')
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["a"]}), tmp_path / "E.PARQUET")
    text(tmp_path / "items.jsonl.GZ", '{"item_id": "a"}\n')
    for name in (
        "f.parquet.gz",
        "g.xlsx",
        "settings.json",
        "notes.txt",
        "h.npz",
        ".hidden.csv",
        "_SUCCESS",
        "Makefile",
    ):
        text(tmp_path / name, "")
    found = find([str(tmp_path)], {})
    assert names(found.interactions) == ["A.CSV", "E.PARQUET", "b.csv.gz", "c.Tsv", "d.NDJSON"]
    assert names(found.items) == ["items.jsonl.GZ"]
    assert found.unused == [
        "Makefile (no table)",
        "_SUCCESS (its name begins with _)",
        "f.parquet.gz (no table)",
        "g.xlsx (no table)",
        "h.npz (no table)",
        "notes.txt (give it with --input if it is a table)",
        "settings.json (give it with --input if it is a table)",
    ]
    assert found.splits == {}


def test_files_of_an_mmrec_folder_that_are_not_read_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "baby"
    for name in ("baby.inter", "other.inter"):
        text(folder / name, "userID\titemID\tx_label\n0\t0\t0\n")
    text(folder / "meta-baby.csv", "itemID,title\n0,x\n")
    text(folder / "i_id_mapping.csv", "asin\titemID\nB0\t0\n")
    np.save(folder / "text_feat.npy", np.zeros((1, 2)))
    found = find([str(folder)], {})
    assert (found.name, names(found.interactions), found.items) == ("baby", ["baby.inter"], [])
    assert (list(found.mapping), list(found.features)) == (["item"], ["text"])
    assert found.unused == ["meta-baby.csv (beside baby.inter)", "other.inter (beside baby.inter)"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.parquet", TRAIN),
        ("TRAINING.csv.gz", TRAIN),
        ("train-00000-of-00002.parquet", TRAIN),
        ("interactions_valid.jsonl.zst", VALIDATION),
        ("ml-100k.val.inter", VALIDATION),
        ("dev.tsv", VALIDATION),
        ("validation.arrow", VALIDATION),
        ("log.test.csv", TEST),
        ("test.ndjson", TEST),
        ("latest.csv", None),
        ("trains.csv", None),
        ("my-test-log.csv", None),
        ("log.csv", None),
    ],
)
def test_the_split_in_a_file_name(name: str, split: int | None) -> None:
    assert split_of_name(name) == split


@pytest.mark.parametrize("listed", [False, True])
def test_split_files(tmp_path: Path, listed: bool) -> None:
    files = [text(tmp_path / f"shop/{name}") for name in ("test.csv", "train.csv.gz", "valid.csv")]
    text(tmp_path / "shop/items.csv", "item_id\na\n")
    found = find([str(file) for file in files] if listed else [str(tmp_path / "shop")], {})
    assert names(found.interactions) == ["test.csv", "train.csv.gz", "valid.csv"]
    assert [found.splits[table] for table in found.interactions] == [TEST, TRAIN, VALIDATION]
    assert names(found.items) == ([] if listed else ["items.csv"])


def test_the_split_files_of_recbole(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        text(tmp_path / f"ml/ml.{split}.inter", "user_id:token\titem_id:token\nu\ta\n")
    found = find([str(tmp_path / "ml")], {})
    assert [found.splits[table] for table in found.interactions] == [TEST, TRAIN, VALIDATION]
    assert find([str(tmp_path / "ml/ml.train.inter")], {}).name == "ml"


def test_one_split_alone_says_nothing(tmp_path: Path) -> None:
    text(tmp_path / "train.csv")
    assert find([str(tmp_path)], {}).splits == {}
    text(tmp_path / "training.csv")
    assert find([str(tmp_path)], {}).splits == {}


def test_a_file_of_the_input_that_is_given_for_testing(tmp_path: Path) -> None:
    for name in ("train.csv", "valid.csv", "other.csv"):
        text(tmp_path / name)
    found = find([str(tmp_path)], {}, None, [], [str(tmp_path / "valid.csv")])
    labels = {table.place.file_name: label for table, label in found.splits.items()}
    assert labels == {"other.csv": TRAIN, "train.csv": TRAIN, "valid.csv": TEST}
    assert len(found.interactions) == 3


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    text(tmp_path / "log.csv")
    (tmp_path / "link").symlink_to(tmp_path)
    found = find([str(tmp_path), str(tmp_path / "log.csv"), f"{tmp_path}/*.csv", str(tmp_path / "link/log.csv")], {})
    assert names(found.interactions) == ["log.csv"]


def test_no_table_says_what_there_is(tmp_path: Path) -> None:
    text(tmp_path / "old/log.csv")
    text(tmp_path / "notes.docx")
    with pytest.raises(InputError) as caught:
        find([str(tmp_path)], {})
    assert caught.value.code == "table.missing"
    used = "old/ (in a sub-folder; give it with --input), notes.docx (no table)"
    assert str(caught.value).endswith(f"; not used: {used}")


def test_a_file_without_a_split_beside_those_that_have_one(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv", "more.csv"):
        text(tmp_path / name)
    with pytest.raises(InputError, match=r"more\.csv: which split\?") as caught:
        find([str(tmp_path)], {})
    assert caught.value.code == "split.files"


def test_split_files_that_are_given(tmp_path: Path) -> None:
    text(tmp_path / "log/a.csv")
    text(tmp_path / "log/items.csv", "item_id\na\n")
    held, late = text(tmp_path / "held.csv"), text(tmp_path / "late/train.csv")
    found = find([str(tmp_path / "log")], {}, None, [str(held)], [str(late.parent)])
    assert names(found.interactions) == ["a.csv", "held.csv", "train.csv"]
    assert [found.splits[table] for table in found.interactions] == [TRAIN, VALIDATION, TEST]
    assert names(found.items) == ["items.csv"]
    with pytest.raises(InputError, match=r"held\.csv: is given for validation and for testing"):
        find([str(tmp_path / "log")], {}, None, [str(held)], [str(held)])
    with pytest.raises(InputError, match=r"items\.csv: no user column"):
        find([str(tmp_path / "log/a.csv")], {}, None, [str(tmp_path / "log/items.csv")])


@pytest.mark.parametrize("role", ALIASES)
def test_every_usual_name_in_any_case_and_with_a_type(tmp_path: Path, role: Role) -> None:
    for name in ALIASES[role]:
        for written in (name, name.upper(), f"{name}:token"):
            assert column_of(table(tmp_path, "other", written), role, {}) == written


def test_the_product_of_amazon_is_the_item(tmp_path: Path) -> None:
    reviews = table(tmp_path, "rating", "asin", "parent_asin", "user_id", "timestamp")
    assert column_of(reviews, "item", {}) == "parent_asin"
    assert column_of(reviews, "item", {"item": "asin"}) == "asin"
    with pytest.raises(InputError, match=r"columns 'parent_asin' and 'sku' could both be the item column"):
        column_of(table(tmp_path, "asin", "parent_asin", "sku"), "item", {})


def test_all_missing_columns_are_in_one_error(tmp_path: Path) -> None:
    log = table(tmp_path, "who", "what", "when")
    with pytest.raises(InputError) as caught:
        needed_columns(log, ("user", "item", "time"), {"time": "then"})
    assert caught.value.code == "column.missing"
    assert str(caught.value) == (
        f"{log.path}: no column 'then' (--time-column) and no user column ({', '.join(ALIASES['user'])}) "
        f"and no item column ({', '.join(ALIASES['item'])}); the columns are who, what, when; "
        "name them with --user-column and --item-column"
    )
    with pytest.raises(InputError, match=r"no user column .* and no item column"):
        find([str(log.path)], {})


def test_the_name_of_the_data(tmp_path: Path) -> None:
    text(tmp_path / "shop/log.v2.csv.gz")
    assert find([str(tmp_path / "shop")], {}).name == "shop"
    assert find([str(tmp_path / "shop/log.v2.csv.gz")], {}).name == "log.v2"
    assert find([str(tmp_path / "shop/*.csv.gz")], {}).name == "shop"
    assert find([str(tmp_path / "shop")], {}, "mine").name == "mine"
