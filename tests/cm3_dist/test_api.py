"""The Python interface: the cells of docs/python.md, the names of the package, and refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import cm3_dist
from cm3_dist import fit, load_run, prepare
from partition.errors import InputError
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "python.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(cells) >= 9
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"{PAGE.name}, cell {number}", "exec"), names)
    lists = names["lists"]
    assert lists.num_rows == 5 * len(lists["user"].unique())
    assert names["figures"]["rankings"]["CM3"]["accuracy"] == pytest.approx(load_metrics(tmp_path)["test"])
    user = names["user_ids"][0].as_py()
    with load_run("runs/first", data="prepared") as run:
        top = run.recommend([user], k=1, exclude_seen=False).to_pylist()[0]
    best = int(np.argmax(names["scores"][0]))
    assert (top["item"], top["score"]) == (names["item_ids"][best].as_py(), pytest.approx(names["scores"][0, best]))
    assert (tmp_path / "exports/first/manifest.json").exists()


def load_metrics(folder: Path) -> dict[str, Any]:
    import json

    content: dict[str, Any] = json.loads((folder / "runs/first/metrics.json").read_text())
    return content


def test_the_package_imports_torch_on_first_use_only() -> None:
    program = """
import sys, cm3_dist
assert "torch" not in sys.modules
from cm3_dist import fit
try:
    fit(config="nowhere.yaml")
except Exception as error:
    assert "nowhere.yaml: no such settings file" in str(error), error
else:
    raise AssertionError
from cm3_dist.training.loop import run
from cm3_dist.train import main
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_wrong_arguments_are_refused(finished_run: Path, tmp_path: Path) -> None:
    with load_run(finished_run) as run:
        calls: dict[str, Callable[[], object]] = {
            "embeddings.kind": lambda: run.embeddings("users"),  # type: ignore[arg-type]
            "lists.k": lambda: run.recommend(k=0),
            "evaluation.split": lambda: run.evaluate("tset"),
            "evaluation.slice": lambda: run.evaluate(by=["bogus"]),
            "export.dtype": lambda: run.export(tmp_path / "out", dtype="int8"),
        }
        for code, call in calls.items():
            with pytest.raises(InputError) as error:
                call()
            assert error.value.code == code
    assert not list(tmp_path.iterdir())


def test_refusals(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="no attribute 'learn'"):
        _ = cm3_dist.learn  # type: ignore[attr-defined]
    with refused("prepare.option"):
        prepare(tmp_path, tmp_path / "out", ways=3)
    with pytest.raises(InputError, match=r"did you mean 'train\.epochs'"):
        fit(tmp_path, tmp_path / "run", train={"epoch": 3})
    with refused("run.missing"):
        load_run(tmp_path)
    run = load_run(finished_run)
    with pytest.raises(InputError, match=r"machine\.device"):
        load_run(finished_run, machine={"device": "cuda"})
    for users, code in ((["u999"], "ids.unknown"), (["u5"], "users.untrained"), ([7], "ids.type")):
        with refused(code):
            run.recommend(users)
    with refused("ids.type"):
        run.recommend(items=pa.array(["1003"]))
    with refused("options.conflict"):
        run.recommend(["u7"], new_users="new.csv")
    second = load_run(finished_run, checkpoint="latest")
    run.close()
    assert second.recommend(["u7"], k=2).num_rows == 2  # the other's end does not end this one
    second.close()
    with refused("run.closed"):
        second.similar(1003)
    assert repr(second).endswith("closed)")


@contextmanager
def refused(code: str) -> Iterator[None]:
    """The block raises InputError with this code."""
    with pytest.raises(InputError) as error:
        yield
    assert error.value.code == code
