"""Every command on a finished run gives the same on two ranks as on one. One start of two processes serves them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cm3_dist.config.command_options import run_settings
from cm3_dist.evaluation.report import evaluate_model
from cm3_dist.inference import top_k_lists
from cm3_dist.inference.export_rows import write_rows
from cm3_dist.inference.recommend_lists import write_lists
from cm3_dist.inference.similar_items import similar_items
from cm3_dist.inference.trained_model import TrainedModel, open_model
from tests.support.ranks import run_ranks


def _everything(folder: Path, out: Path) -> dict[str, Any]:
    """Calls every command; files go to `out`, and what is returned comes back."""
    settings, new_items = run_settings(folder, []), out.parent / "new.parquet"
    with open_model(settings) as model:
        found = {
            "similar": [similar_items(model, item, 7, by) for item in (1000, 1033) for by in ("all", "text")],
            "evaluate": evaluate_model(
                model,
                against=TrainedModel(settings, model.runtime),
                resamples=100,
                by=("popularity", "activity"),
                baselines="popularity,random,ease,item-knn",
            ),
        }
        rows = write_rows(model, out / "rows", modality_rows=True, index="flat")
        lists = [
            write_lists(model, out / "all.parquet"),
            write_lists(model, out / "all.jsonl", exclude_held_out=True),
            write_lists(model, out / "new-items.jsonl", new_items=new_items),
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(top_k_lists, "USERS_PER_BLOCK", 2)
            new = write_lists(model, out / "new-users.jsonl", new_items=new_items, new_users=out.parent / "new.csv")
    rows.finish()  # the ranks have left each other: rank 0 completes the files alone
    for file in (*lists, new):
        file.finish()
    return found


@pytest.fixture(scope="module")
def results(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[dict[str, Any], Path]]:
    found, base = {}, tmp_path_factory.mktemp("outputs")
    rng = np.random.default_rng(0)
    lists = {name: list(rng.standard_normal((5, width))) for name, width in (("image", 12), ("text", 8))}
    pq.write_table(pa.table({"item": [7, 3, 9, 1, 5], **lists}), base / "new.parquet")
    (base / "new.csv").write_text("user,item\n" + "".join(f"x{n},{1000 + n * 3 % 60}\nx{n},{n}\n" for n in (1, 3, 5)))
    for world_size in (1, 2):
        out = base / f"on-{world_size}"
        out.mkdir()
        answer = _everything(finished_run, out) if world_size == 1 else run_ranks(_everything, 2, finished_run, out)[0]
        found[world_size] = answer, out
    return found


@pytest.mark.parametrize("name", ["similar", "evaluate"])
def test_figures(results: dict[int, tuple[dict[str, Any], Path]], name: str) -> None:
    one, two = (_flat(results[world_size][0][name]) for world_size in (1, 2))
    assert two == pytest.approx(one, abs=1e-5 if name == "similar" else 1e-9)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, each in value.items() for k, v in _flat(each, f"{prefix}/{name}").items()}
    if isinstance(value, list):
        return {k: v for number, each in enumerate(value) for k, v in _flat(each, f"{prefix}/{number}").items()}
    return {prefix: value}


def test_lists(results: dict[int, tuple[dict[str, Any], Path]]) -> None:
    tables = [pq.read_table(results[world_size][1] / "all.parquet") for world_size in (1, 2)]
    assert tables[0].schema == tables[1].schema
    for column in ("user", "rank", "item"):
        assert tables[0][column].to_pylist() == tables[1][column].to_pylist(), column
    np.testing.assert_allclose(tables[1]["score"].to_numpy(), tables[0]["score"].to_numpy(), rtol=1e-4)
    for name in ("all", "new-items", "new-users"):
        texts = [(results[world_size][1] / f"{name}.jsonl").read_text() for world_size in (1, 2)]
        one, two = ([json.loads(line) for line in text.splitlines()] for text in texts)
        assert [line["user"] for line in one] == [line["user"] for line in two]
        assert [line["items"] for line in one] == [line["items"] for line in two], name
    assert any(item < 10 for line in one for item in line["items"])  # new items among them
    assert [line["user"] for line in one] == ["x1", "x3", "x5"]


def test_rows(results: dict[int, tuple[dict[str, Any], Path]]) -> None:
    for kind in ("users", "items"):
        tables = [
            pa.concat_tables(pq.read_table(path) for path in sorted((results[w][1] / "rows" / kind).glob("*.parquet")))
            for w in (1, 2)
        ]
        assert tables[0].schema == tables[1].schema
        assert tables[0]["id"].equals(tables[1]["id"])
        for column in tables[0].column_names[2:]:
            one, two = (np.array(table[column].to_pylist()) for table in tables)
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
