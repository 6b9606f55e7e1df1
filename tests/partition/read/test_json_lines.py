from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from partition.errors import InputError
from partition.read import text_file
from partition.read.table_file import TableFile, open_table


@pytest.fixture(params=[1 << 24, 20], ids=["one chunk", "chunks of one record"], autouse=True)
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every test with chunks that hold the whole file, and one record."""
    own = text_file.chunks
    monkeypatch.setattr(
        text_file, "chunks", lambda stream, separator=text_file.TAB, size=0: own(stream, separator, request.param)
    )


def opened(path: Path, *lines: str) -> TableFile:
    file = path / "log.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return open_table(file)


def test_a_field_that_first_occurs_late(tmp_path: Path) -> None:
    file = opened(tmp_path, '{"user": 1}', '{"user": 2}', "", '{"label": 0, "user": 3}')
    assert file.names == ("user", "label")
    assert file.read(["label", "user"]).to_pydict() == {"label": [None, None, 0], "user": [1, 2, 3]}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2.5], pa.float64()),
        ([None, None, 7], pa.int64()),
        (["2026-01-01 00:00:00", "x", None], pa.string()),
        (["2026-01-01 00:00:00", None, "2026-01-02 00:00:00"], pa.string()),  # text, as it is written
        ([[1, 2], [0.5, 3], None], pa.list_(pa.float64())),
        ([1_234_567_890_123_456_789, 1, 2], pa.int64()),
        ([True, None, False], pa.bool_()),
    ],
)
def test_a_type_that_holds_all_values(tmp_path: Path, values: list[Any], kind: pa.DataType) -> None:
    file = opened(tmp_path, *(json.dumps({"a": value, "b": 1}) for value in values))
    assert file.schema is not None
    assert file.schema.field("a").type == kind
    assert file.read(["a"])["a"].to_pylist() == values


REFUSED = {
    "no JSON": (['{"a": 1}', "", '{"a": 2', '{"a": 3}'], "line 3: not JSON: "),
    "a list": (['[{"a": 1},', '{"a": 2}]'], "line 1: not JSON: "),
    "a number": (['{"a": 1}', "2"], "line 2: not a record"),
    "text among numbers": (['{"a": 1}', '{"a": "x"}'], "line"),
    "a field twice": (['{"b": 1}', '{"a": 1, "a": 2}'], "line 2: Column(/a) was specified twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    lines, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        opened(tmp_path, *lines)
    assert caught.value.code == "file.unreadable"
    assert str(caught.value).startswith(f"{tmp_path / 'log.jsonl'}: {message}")
    assert "\n" not in str(caught.value)


def test_the_line_of_a_row(tmp_path: Path) -> None:
    file = opened(tmp_path, '{"a": 1}', "", '{"a": "x\\ny"}'.replace('"x\\ny"', "2"), "", "", '{"a": 3}')
    assert [file.where(row) for row in range(3)] == ["row 0 (line 1)", "row 1 (line 3)", "row 2 (line 6)"]


@pytest.mark.parametrize("name", ["log.ndjson", "LOG.JSONL.GZ", "log.json"])
def test_suffixes(tmp_path: Path, name: str) -> None:
    content = b'{"user": "u", "tags": ["x"], "more": {"a": 1}}\r\n' * 3
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    file = open_table(tmp_path / name)
    assert file.read(["more", "user"]).to_pylist() == [{"more": {"a": 1}, "user": "u"}] * 3
