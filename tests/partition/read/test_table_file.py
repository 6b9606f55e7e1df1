from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from partition.errors import InputError
from tests.support.raw_tables import EXPECTED, Refused, items_table, pairs, read, table, text, torn, write


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather", "csv", "tsv", "inter", "txt"])
def test_every_format_reads_the_same(tmp_path: Path, suffix: str) -> None:
    inputs = write(tmp_path / f"log.{suffix}", table()), write(tmp_path / "items.parquet", items_table())
    dataset = read(tmp_path, *inputs)
    assert pairs(dataset) == EXPECTED
    assert dataset.user_ids.to_pylist() == ["u1", "u2", "u3"]
    assert dataset.item_ids.to_pylist() == ["a", "b", "c", "d"]
    assert list(dataset.features) == ["image", "text"]
    assert dataset.features["image"].values.dtype == np.float32
    assert dataset.features["text"].values[3].tolist() == [-9, -10, -11]
    assert dataset.split_method == "column"
    assert dataset.name == "log"
    assert sorted(dataset.inputs) == ["items.parquet", f"log.{suffix}"]


def test_bom_crlf_quotes_and_blank_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_bytes(b'\xef\xbb\xbfuser,item\r\n"u,1",a\r\n\r\nu2,"b"\r\n')
    dataset = read(tmp_path, log, write(tmp_path / "items.parquet", items_table()))
    assert dataset.user_ids.to_pylist() == ["u,1", "u2"]
    tabs = tmp_path / "log.tsv"
    tabs.write_text('user\titem\n5" nail\ta\nu2\tb\n')  # a quote inside a value is a character like any other
    dataset = read(tmp_path, tabs, tmp_path / "items.parquet")
    assert dataset.user_ids.to_pylist() == ['5" nail', "u2"]


REFUSED = {
    "unknown extension": Refused(text("x", "log.xlsx"), "table.format", "log.xlsx: "),
    "empty file": Refused(text(""), "file.unreadable", "log.csv: "),
    "header only": Refused(text("user,item\n"), "table.empty", "log.csv: "),
    "column twice": Refused(
        text("user,item,item\nu,a,a\n"), "column.duplicate", "log.csv: column 'item': ", {"item_column": "item"}
    ),
    "ragged row": Refused(text("user,item\nu,a\nu\n"), "file.unreadable", "log.csv: "),
    "not UTF-8": Refused(text(b"user,item\nu,a\n\xff,a\n"), "file.unreadable", "log.csv: "),
    "torn Parquet": Refused(torn("parquet"), "file.unreadable", "log.parquet: "),
    "torn Arrow": Refused(torn("arrow"), "file.unreadable", "log.arrow: "),
    "Parquet in name only": Refused(text("user,item\n", "log.parquet"), "file.unreadable", "log.parquet: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    REFUSED[case].check(tmp_path)


def test_unreadable_text_is_named_by_line_and_column(tmp_path: Path) -> None:
    items = write(tmp_path / "items.parquet", items_table())
    for content, parts in ((b"u,a\nu\n", ["line 3"]), (b"u,a\n\xff,a\n", ["line 3", "column 'user'"])):
        (tmp_path / "log.csv").write_bytes(b"user,item\n" + content)
        with pytest.raises(InputError) as caught:
            read(tmp_path, tmp_path / "log.csv", items)
        for part in parts:
            assert part in str(caught.value)
