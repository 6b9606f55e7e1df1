"""Errors of docs/troubleshooting.md that no other test provokes, each brought about on purpose and compared with it.

Signs of a run that goes wrong are provoked in tests/cm3_dist/monitoring/test_health_check.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cm3_dist.config.command_options import run_settings
from cm3_dist.config.loading import load_settings
from cm3_dist.config.settings import Machine, Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.shard import own_parts
from cm3_dist.inference.recommend_lists import write_lists
from cm3_dist.inference.trained_model import open_model
from cm3_dist.training.loop import run
from cm3_dist.training.trainer import check_splits
from partition.build import build
from partition.errors import InputError
from partition.extract.request import Request
from partition.extract.run import extract
from partition.folder.manifest import read_manifest
from partition.options import BuildOptions, CutMethod
from tests.support.paths import ROOT
from tests.support.quoted import assert_quoted, code, quoted_lines, words
from tests.support.small import prepare_small, small_settings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder `prepared`, a finished run `mine`, tables `log.csv` and `items.parquet`."""
    folder = tmp_path_factory.mktemp("place")
    prepare_small(folder)
    train(folder)
    (folder / "log.csv").write_text("user,item\nu1,a\nu1,b\nu2,a\nu2,c\n")
    vectors = pa.array([[0.0, 1.0], [1.0, 1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"item": ["a", "b"], "image": vectors}), folder / "items.parquet")
    np.save(folder / "image_feat.npy", np.array([[np.nan, 1], [1, 1], [1, 1]], np.float32))
    (folder / "two.csv").write_text("user,user_id,item\nu1,1,a\n")
    (folder / "numbers.csv").write_text("user,item\n1,0\n1,1\n2,0\n2,2\n")
    (folder / "titles.csv").write_text("item,title\na,toy\n")
    (folder / "who.csv").write_text("user\nnobody\n")
    (folder / "quote.csv").write_text('user,item\nu,a\nu,"b\n')
    (folder / "clicks.csv").write_text("user,item,click\nu,a,1\nu,b,0\n")
    (folder / "twice.csv").write_text("item,title\na,toy\na,lamp\n")
    return folder


def train(place: Path, resume: bool = False, name: str = "mine", **sections: dict[str, object]) -> None:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        run(small_settings(place / "prepared", place / name, **sections), runtime, resume)


def start(device: Literal["cuda"]) -> None:
    with distributed(Machine(device=device)):
        pass


def torn(place: Path) -> None:
    checkpoints = place / "mine" / "checkpoints"
    damaged = next(iter((checkpoints / (checkpoints / "latest").read_text().strip()).glob("*.distcp")))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + b"x")
    try:
        train(place, True, train={"epochs": 3})
    finally:
        damaged.write_bytes(whole)


def recommended(place: Path, folder: str) -> None:
    with open_model(run_settings(place / folder, [])) as model:
        write_lists(model, place / "lists.jsonl", users=place / "who.csv")


def built(place: Path, *files: str, features: str | None = None) -> None:
    chosen = [] if features is None else [f"image={place / features}"]
    inputs = [place / file for file in files]
    build(
        BuildOptions(
            input=[str(path) for path in inputs],
            output=place / "new",
            parts=2,
            features=chosen,
            method=CutMethod.RANDOM,
        )
    )


def without_extra(place: Path) -> None:
    request = Request(items=place / "titles.csv", output=place / "x.parquet", text=["title"], model="any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        extract(request)


CASES: dict[str, Callable[[Path], object]] = {
    "unknown setting": lambda place: load_settings(None, ["train.epoch=20"]),
    "wrong value": lambda place: load_settings(None, ["evaluate.monitor=recall@7"]),
    "not prepared": lambda place: read_manifest(place / "nowhere" / "mine"),
    "ranks and parts": lambda place: own_parts(read_manifest(place / "prepared"), place / "prepared", 0, 3),
    "nothing to stop by": lambda place: check_splits(
        read_manifest(place / "prepared").model_copy(update={"name": "mine", "validation": 0}), Settings()
    ),
    "taken": lambda place: train(place),
    "other settings": lambda place: train(place, True, model={"dim": 16}),
    "no GPU": lambda place: start("cuda"),
    "adam": lambda place: train(place, name="adam", tables={"name": "adam"}),
    "torn checkpoint": lambda place: torn(place),
    "no run": lambda place: recommended(place, "nowhere/mine"),
    "unknown user": lambda place: recommended(place, "mine"),
    "no features": lambda place: built(place, "log.csv"),
    "item without features": lambda place: built(place, "log.csv", "items.parquet"),
    "not a number": lambda place: built(place, "numbers.csv", features="image_feat.npy"),
    "two columns": lambda place: built(place, "two.csv", "items.parquet"),
    "no such column": lambda place: built(place, "twice.csv", "items.parquet"),
    "stray quote": lambda place: built(place, "quote.csv", "items.parquet"),
    "label of 0": lambda place: built(place, "clicks.csv", "items.parquet"),
    "id twice": lambda place: extract(
        Request(items=place / "twice.csv", output=place / "x.parquet", text=["title"], tfidf="1")
    ),
    "no extra": without_extra,
    "no model": lambda place: extract(
        Request(items=place / "titles.csv", output=place / "x.parquet", text=["title"], model="./absent")
    ),
}


# Provoked in test_health_check.py, test_integrity.py, test_nonfinite.py and test_assign.py, which compare them too.
ELSEWHERE = (
    "warning: collapse",
    "error: step",
    "warning: step",
    "warning: fused rows",
    "warning: fused channel",
    "warning: cold items",
    "error: rank",
    "error: prepared/mine/parts/",
    "error: prepared/mine/manifest.json: changed",
    "error: --method metis: METIS was ended",
)


@pytest.fixture(scope="module")
def printed(place: Path) -> dict[str, str]:
    lines = {}
    for name, provoke in CASES.items():
        with pytest.raises(InputError) as error:
            provoke(place)
        lines[name] = error.value.line
    return lines


@pytest.mark.parametrize("case", CASES)
def test_the_page_quotes_what_is_printed(case: str, printed: dict[str, str]) -> None:
    assert_quoted(printed[case])


def test_every_error_of_the_page_is_provoked(printed: dict[str, str]) -> None:
    known = {*map(code, printed.values()), *map(words, printed.values())} - {None}
    missing = [line for line in quoted_lines() if code(line) not in known and words(line) not in known]
    assert [line for line in missing if not re.sub(r"^error\[.*?\]", "error", line).startswith(ELSEWHERE)] == []


def test_codes_of_the_page_are_those_of_the_program() -> None:
    files = [path for folder in ("cm3_dist", "partition", "jobs") for path in (ROOT / folder).rglob("*.py")]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [line for line in quoted_lines() if (found := code(line)) and f'"{found}"' not in source] == []
