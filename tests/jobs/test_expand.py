"""What `python -m jobs.expand` prints."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from jobs.expand import expand, ranges
from tests.support.study import call


def test_count_arguments_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, into = tmp_path / "sweep.yaml", tmp_path / "runs"
    path.write_text(yaml.safe_dump({"grid": {"train.seed": [1, 2, 3], "data.path": ["a b"]}}, sort_keys=False))
    assert call(expand, path, "--count") == 0
    assert capsys.readouterr().out == "3\n"
    assert call(expand, path, "--index", 1, "--into", into, "train.epochs=4") == 0
    words = shlex.split(capsys.readouterr().out)
    assert words == ["train.seed=2", "data.path=a b", "train.epochs=4", f"run.dir={into}/seed=2,path=a_b"]
    assert call(expand, path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [[str(n), f"seed={n + 1},path=a_b", "new"] for n in range(3)]
    for arguments, code in (
        (["--index", 3], "sweep.index"),
        (["--index", -1], "sweep.index"),
        (["--count", "--todo"], "expand.options"),
        (["--unless-done"], "expand.options"),
    ):
        assert call(expand, path, *arguments) == 2
        assert capsys.readouterr().err.startswith(f"error[{code}]: ")
    assert call(expand, path, "nonsense") == 2


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""
