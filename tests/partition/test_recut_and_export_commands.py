"""`recut` and `export` on the command line: what they print, exit codes, and going on after an interruption."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from partition import cli as command
from partition.folder.manifest import read_manifest
from partition.folder.verify import verify
from tests.support.small import prepare_small


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """`python -m partition ...` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["partition", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    return int(stopped.value.code or 0)


def test_recut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root, new = prepare_small(tmp_path), tmp_path / "new"
    arguments = ("recut", root, "--parts", 3, "--output", new, "--method", "random")
    assert run(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "4 -> 3 by random" in said
    assert f"Next: python -m cm3_dist.train data.path={new}" in said
    assert verify(new).num_parts == 3
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith("error[output.exists]: ")
    assert run(monkeypatch, *arguments, "--overwrite") == 0
    assert run(monkeypatch, "recut", "--parts", 3, "--output", new) == 2  # without a folder
    assert run(monkeypatch, "recut", root, "--parts", 0, "--output", tmp_path / "other") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "prepared"]


def test_an_interrupted_recut_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, new = prepare_small(tmp_path), tmp_path / "new"
    arguments = ("recut", root, "--parts", 3, "--output", new, "--method", "random")
    assert run(monkeypatch, *arguments) == 0
    wanted = read_manifest(new).parts

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    again = tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr("partition.folder.write.write_similar", interrupted)
        patch.setattr(sys, "argv", ["partition", *map(str, arguments[:5]), str(again), *arguments[6:]])
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            command.main()
    assert not again.exists()
    capsys.readouterr()
    assert run(monkeypatch, *arguments[:5], again, *arguments[6:]) == 0
    assert "from an earlier run" in capsys.readouterr().out  # the cut
    assert read_manifest(again).parts == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "new", "prepared"]


@pytest.mark.parametrize("form", ["mmrec", "recbole", "parquet", "dgl"])
def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str) -> None:
    root, output = prepare_small(tmp_path), tmp_path / "out"
    assert run(monkeypatch, "export", root, "--format", form, "--output", output, "--name", "mine") == 0
    assert f"{output}: mine for {form}" in capsys.readouterr().out
    assert run(monkeypatch, "export", root, "--format", form, "--output", output) == 2
    assert capsys.readouterr().err.startswith("error[export.output]: ")
    assert run(monkeypatch, "export", tmp_path / "none", "--format", form, "--output", tmp_path / "other") == 2
    assert capsys.readouterr().err.startswith("error[prepared.missing]: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "prepared"]


def test_an_unknown_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "export", tmp_path, "--format", "csv", "--output", tmp_path / "out") == 2
