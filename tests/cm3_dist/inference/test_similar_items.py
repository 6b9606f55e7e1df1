"""Nearest items against brute force, their explanation, refusals; on two ranks: test_outputs_on_ranks.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cm3_dist.config.command_options import run_settings
from cm3_dist.inference.similar_items import similar_items
from cm3_dist.inference.trained_model import TrainedModel, open_model
from cm3_dist.similar import main
from tests.support.refusals import refusal


@pytest.fixture(scope="module")
def opened(finished_run: Path) -> Any:
    with open_model(run_settings(finished_run, [])) as model:
        yield model


@pytest.mark.parametrize("by", ["all", "image", "fused"])
def test_nearest_by_brute_force(opened: TrainedModel, by: str) -> None:
    rows = opened.rows[1].numpy().astype(np.float64)
    if by != "all":
        place = opened.channels.index(by) * 8
        rows = rows[:, place : place + 8]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    ids = opened.item_ids
    own = ids.rows([1007])[0]
    cosine = rows @ rows[own]
    cosine[~opened.shard.is_item] = -np.inf
    cosine[own] = -np.inf
    expected = ids.take(np.argsort(-cosine, kind="stable")[:9]).to_pylist()
    found = similar_items(opened, 1007, 9, by)
    assert [entry["item"] for entry in found] == expected
    for entry in found:
        assert sum(entry["contributions"].values()) == pytest.approx(entry["cosine"])
        assert set(entry["channels"]) == {"image", "text", "fused"}
        assert set(entry["features"]) == {"image", "text"}
    key = [entry["cosine"] if by == "all" else entry["channels"][by] for entry in found]
    assert key == sorted(key, reverse=True)
    assert key == pytest.approx(-np.sort(-cosine)[:9], abs=1e-6)


def test_item_graph_and_features(opened: TrainedModel) -> None:
    """Over the whole catalogue the weights are the item's row of the graph, and the raw cosines those of the files."""
    found = {entry["item"]: entry for entry in similar_items(opened, 1007, 1000)}
    assert len(found) == opened.manifest.items - 1
    ids = opened.item_ids
    own = int(ids.rows([1007])[0])
    graph = opened.shard.similar
    edges = slice(*graph.indptr[own : own + 2])
    weight = dict(zip(ids.take(graph.source[edges]).to_pylist(), graph.value[edges].tolist(), strict=True))
    assert {item: e["item_graph"] for item, e in found.items() if e["item_graph"]} == {
        item: value for item, value in weight.items() if item != 1007
    }
    other = next(iter(found))
    pair = opened.features.gather(ids.rows([1007, other]))["text"].double().numpy()
    cosine = pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1])
    assert found[other]["features"]["text"] == pytest.approx(cosine)


def test_refusals_and_output(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {"ids.unknown": ["5"], "ids.type": ["x"], "channel.unknown": ["1003", "--by", "sound"]}
    for code, arguments in cases.items():
        line = refusal(main, [str(finished_run), "--item", *arguments], capsys)
        assert line.startswith(f"error[{code}]: ")
    for arguments, text in ((["-k", "2"], "raw text"), (["--json"], '"contributions"')):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["similar", str(finished_run), "--item", "1003", *arguments])
            with pytest.raises(SystemExit):
                main()
        assert text in capsys.readouterr().out
