from __future__ import annotations

import bz2
import csv
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from partition.errors import InputError
from partition.read import text_file
from partition.read.table_file import open_table


def rows(path: Path, content: str | bytes, name: str = "log.csv") -> list[dict[str, Any]]:
    file = path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = open_table(file)
    return table.read(table.names).to_pylist()


@pytest.fixture(params=[1 << 24, 16, 3], ids=["one chunk", "chunks of 16 bytes", "chunks of 3 bytes"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with chunks that hold the whole file, some records, or part of one."""
    own = text_file.chunks
    monkeypatch.setattr(
        text_file, "chunks", lambda stream, separator=text_file.TAB, size=0: own(stream, separator, request.param)
    )


READ = {
    "quotes in a tab-separated file are characters": (
        'user\titem\tcomment\nu1\ta\t"great\nu2\tb\t24" wide\nu3\t"c"\tfine\n',
        [("u1", "a", '"great'), ("u2", "b", '24" wide'), ("u3", '"c"', "fine")],
    ),
    "separators, quotes and line breaks in quotes": (
        'user,item,comment\n"u,1",a,"say ""hi"""\nu2,"b","two\nlines"\nu3,c,""""\n',
        [("u,1", "a", 'say "hi"'), ("u2", "b", "two\nlines"), ("u3", "c", '"')],
    ),
    "CRLF, blank lines and a byte order mark": (
        '\ufeffuser,item,comment\r\n\r\nu1,a,"x\r\ny"\r\n\r\nu2,b,\r\n',
        [("u1", "a", "x\r\ny"), ("u2", "b", None)],
    ),
    "no line end at the end": ("user,item,comment\nu1,a,x", [("u1", "a", "x")]),
    "CR alone ends a line": ("user,item,comment\ru1,a,x\ru2,b,y\r", [("u1", "a", "x"), ("u2", "b", "y")]),
    "semicolons": ("user;item;comment\nu1;a;x,y\n", [("u1", "a", "x,y")]),
    "ids as they are written": (
        "user,item,comment\n007,1e3,NA\n 1,null,nan\n",
        [("007", "1e3", "NA"), (" 1", "null", "nan")],
    ),
    "an empty value is missing": ('user,item,comment\nu1,,""\n', [("u1", None, None)]),
    "a header in quotes, as Arrow writes it": ('"user"\t"item"\t"comment"\nu1\ta\tx\n', [("u1", "a", "x")]),
}


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("case", READ)
def test_read(tmp_path: Path, case: str) -> None:
    content, expected = READ[case]
    found = rows(tmp_path, content)
    assert [tuple(row.values()) for row in found] == expected
    assert all(list(row) == ["user", "item", "comment"] for row in found)


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "a quote that is never closed": ('a,b\n1,2\n1,"x\n1,2\n1,2\n', "line 3: a quote opens here and is never closed"),
    "a quote inside a field": ('a,b\n1,"x\ny"\n1,24" wide\n', "line 4: a quote inside a field without quotes"),
    "two quotes, the second inside a field": (
        'a,b\n1,2\n1,"x\n1,2\n1,2" w\n',
        "line 3: a quote opens here, and the one",
    ),
    "text after a closing quote": (
        'a,b\n1,"x"y\n',
        "line 2: a quote opens here, and the one that closes it, in line 2",
    ),
    "whole rows between two quotes": (
        'a,b,c\n1,2,3\n1,2,"x\n' + "1,2,3\n" * 20 + '1,2,24"\n',
        "line 3: a quote opens here and closes in line 24, and all lines between are rows",
    ),
    "too few fields, after line breaks in quotes": ('a,b\n1,"x\ny\nz"\n\n1\n', "line 6: 1 fields; the header has 2"),
    "too many fields": ("a,b\n1,2\n1,2,3\n", "line 3: 3 fields; the header has 2"),
    "too few fields between tabs": ("a\tb\n1\t2\n1\n", "line 3: 1 fields; the header has 2"),
    "not UTF-8": (b'a,b\n1,"x\ny"\n1,\xff\n', "line 4, column 'b': is not UTF-8"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "is UTF-16"),
    "nothing": ("\n\n", "is empty"),
}


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    content, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        rows(tmp_path, content)
    assert caught.value.code == "file.unreadable"
    assert str(caught.value).startswith(f"{tmp_path / 'log.csv'}: {message}")
    assert "\n" not in str(caught.value)


def test_values_in_quotes_between_tabs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="values are in quotes") as caught:
        rows(tmp_path, '"a"\t"b"\n"1"\t"2"\n')
    assert caught.value.code == "file.unreadable"


def test_a_long_text_of_many_lines_is_no_swallowed_row(tmp_path: Path) -> None:
    poem = "\n".join(f"line {k}, of a poem" if k % 3 else f"line {k}" for k in range(60))
    assert rows(tmp_path, f'item,text\na,"{poem}"\nb,x\n') == [{"item": "a", "text": poem}, {"item": "b", "text": "x"}]


def test_a_record_longer_than_many_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "CHUNK_BYTES", 1 << 10)
    text = "a line, and another\n" * 20_000
    found = rows(tmp_path, f'item,text\na,x\nb,"{text}"\nc,y\n')
    assert [row["text"] for row in found] == ["x", text, "y"]


@pytest.mark.usefixtures("chunk")
def test_the_line_of_a_row_counts_line_breaks_in_quotes_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_bytes(b'a,b\r\n1,"x\ry\nz"\r\n\r\n2,y\r\n3,"\r\n"\r\n4,z')
    table = open_table(file)
    assert [table.where(row) for row in range(4)] == [
        "row 0 (line 2)",
        "row 1 (line 6)",
        "row 2 (line 7)",
        "row 3 (line 9)",
    ]


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zst)])
def test_compressed(tmp_path: Path, suffix: str, pack: Any) -> None:
    parts = [b"user,item\n" + b"u1,a\n" * 1000, b"u2,b\n" * 1000]
    found = rows(tmp_path, pack(parts[0]) + pack(parts[1]), f"LOG.CSV{suffix.upper()}")  # one after the other
    assert [len(found), found[0]["user"], found[-1]["user"]] == [2000, "u1", "u2"]
    with pytest.raises(InputError, match=r"LOG\.CSV") as caught:
        rows(tmp_path, pack(b"".join(parts))[:-9], f"LOG.CSV{suffix.upper()}")
    assert caught.value.code == "file.unreadable"


def test_random_tables_read_as_pythons_reader_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list('ab,"\n\r;é '))
    for trial in range(60):
        monkeypatch.setattr(text_file, "CHUNK_BYTES", int(rng.integers(1, 40)))
        table = [["".join(rng.choice(letters, rng.integers(1, 6))) for _ in range(3)] for _ in range(8)]
        sink = io.StringIO(newline="")
        csv.writer(sink, quoting=csv.QUOTE_MINIMAL if trial % 2 else csv.QUOTE_ALL).writerows([["a", "b", "c"], *table])
        found = rows(tmp_path, sink.getvalue())
        assert [list(row.values()) for row in found] == table
        file = open_table(tmp_path / "log.csv")
        reader = csv.reader(io.StringIO(sink.getvalue(), newline=""))
        ends = [reader.line_num for _ in reader]
        assert [file.where(row) for row in range(8)] == [f"row {row} (line {ends[row] + 1})" for row in range(8)]
