"""The evaluation of a finished run: the run's own metrics, slices, exposure, baselines, bootstrap, ranks, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3_dist.config.command_options import run_settings
from cm3_dist.evaluate import main
from cm3_dist.evaluation.beyond_accuracy import exposure
from cm3_dist.evaluation.bootstrap import paired_bootstrap
from cm3_dist.evaluation.linear_baselines import EASE_L2, SHRINK, ease, item_knn
from cm3_dist.evaluation.neighbourhood_overlap import neighbourhood_overlap
from cm3_dist.evaluation.protocol import Ranked, Task, evaluation_task, rank_by_rows
from cm3_dist.evaluation.report import evaluate_model
from cm3_dist.evaluation.slices import Group, groups
from cm3_dist.inference.trained_model import TrainedModel, open_model
from partition.errors import InputError
from tests.support.refusals import refusal
from tests.support.small import finish_small, untrained_item, weighted_dataset

EVERYTHING: dict[str, Any] = {"by": ("popularity", "activity"), "baselines": "popularity,random,ease,item-knn"}


def _evaluate(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    settings = run_settings(folder, [])
    with open_model(settings) as model:
        return evaluate_model(model, against=TrainedModel(settings, model.runtime), resamples=100, **options)


@pytest.fixture(scope="module")
def content(finished_run: Path) -> dict[str, Any]:
    return _evaluate(finished_run, EVERYTHING)


def test_the_metrics_are_those_of_the_run(finished_run: Path, content: dict[str, Any]) -> None:
    expected = json.loads((finished_run / "metrics.json").read_text())
    assert content["rankings"]["CM3"]["accuracy"] == pytest.approx(expected["test"], abs=1e-12)
    for name in ("popularity", "random"):
        assert content["rankings"][name]["accuracy"] == pytest.approx(expected["baselines"][name], abs=1e-12)


def test_slices_share_out_everything(content: dict[str, Any]) -> None:
    for name, entry in content["rankings"].items():
        by_popularity, by_activity = entry["by_popularity"], entry["by_activity"]
        assert by_popularity[0]["training_interactions"] == [0, 0]
        for share in ("share_of_items", "share_of_held_out", "share_of_lists"):
            assert sum(group[share] for group in by_popularity) == pytest.approx(1), (name, share)
        mean = sum(group["recall@20"] * group["users"] for group in by_activity) / content["users"]
        assert mean == pytest.approx(entry["accuracy"]["recall@20"])
        ends = [group["training_interactions"] for group in by_activity]
        assert all(a[1] + 1 == b[0] for a, b in zip(ends, ends[1:]))
    popular = content["rankings"]["popularity"]["by_popularity"]
    assert popular[-1]["share_of_lists"] > popular[-1]["share_of_held_out"]


def test_a_run_equals_itself(content: dict[str, Any]) -> None:
    for found in content["against"]["difference"].values():
        assert found == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


@pytest.fixture(scope="module")
def opened(finished_run: Path) -> Any:
    with open_model(run_settings(finished_run, [])) as model:
        yield model, evaluation_task(model, "test", cold=False)


def _matrix(run: TrainedModel) -> np.ndarray:
    matrix = np.zeros((run.manifest.user_rows, run.manifest.item_rows))
    edges = run.shard.user_from_item
    matrix[np.repeat(np.arange(len(matrix)), np.diff(edges.indptr)), edges.source] = 1
    return matrix


def _top(run: TrainedModel, what: Task, score: np.ndarray) -> np.ndarray:
    score = np.where(_matrix(run)[what.users] > 0, -np.inf, score[what.users])
    score[:, ~what.is_candidate] = -np.inf
    return score


def test_ease_and_item_knn_are_their_formulas(opened: tuple[TrainedModel, Task]) -> None:
    run, what = opened
    x = _matrix(run)
    gram = x.T @ x
    inverse = np.linalg.inv(gram + EASE_L2 * np.eye(len(gram)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    degree = np.maximum(x.sum(0), 1)
    cosine = gram / (np.sqrt(np.outer(degree, degree)) + SHRINK)
    np.fill_diagonal(cosine, 0)
    nearest = np.sort(cosine, axis=1)[:, -7][:, None]
    for ranked, b in ((ease(run, what), weights), (item_knn(run, what, 100), cosine)):
        score = _top(run, what, x @ b)
        taken = np.take_along_axis(score, ranked.lists.numpy(), 1)
        np.testing.assert_allclose(taken, -np.sort(-score, axis=1)[:, : taken.shape[1]], rtol=1e-4, atol=1e-6)
    assert (nearest > 0).any()
    few = item_knn(run, what, 7)
    assert not torch.equal(few.lists, item_knn(run, what, 100).lists)


def test_baselines_and_slices_count_weighted_interactions(
    opened: tuple[TrainedModel, Task], content: dict[str, Any], tmp_path: Path
) -> None:
    """The same interactions with weights: other rows, the same baselines and groups."""
    run, what = opened
    expected = ease(run, what).lists, item_knn(run, what, 7).lists
    folder = finish_small(tmp_path, weighted_dataset(untrained_item()), train={"epochs": 1})
    with open_model(run_settings(folder, [])) as weighted:
        task = evaluation_task(weighted, "test", cold=False)
        for lists, found in zip(expected, (ease(weighted, task), item_knn(weighted, task, 7)), strict=True):
            assert torch.equal(found.lists, lists)
        assert not torch.equal(weighted.rows[1], run.rows[1])
    found = _evaluate(folder, {"by": ("popularity", "activity"), "baselines": "popularity"})["rankings"]
    assert found["popularity"] == content["rankings"]["popularity"]
    for by in ("by_popularity", "by_activity"):
        groups_of = (
            [group["training_interactions"] for group in some["CM3"][by]] for some in (found, content["rankings"])
        )
        assert next(groups_of) == next(groups_of)


def test_exposure_by_hand(opened: tuple[TrainedModel, Task]) -> None:
    run, what = opened
    ranked = rank_by_rows(run, what, run.rows)
    found = exposure(run, what, ranked)
    lists = ranked.lists[:, :5].numpy()
    items, users = int(what.is_candidate.sum()), run.manifest.users
    count = np.bincount(lists.ravel(), minlength=len(what.item_degree))[what.is_candidate]
    assert found["coverage@5"] == pytest.approx((count > 0).mean())
    unequal = np.abs(count[:, None] - count[None]).sum() / (2 * items**2 * count.mean())
    assert found["gini@5"] == pytest.approx(unequal)
    bits = [-math.log2(max(what.item_degree[item], 1) / users) for item in lists.ravel()]
    assert found["novelty@5"] == pytest.approx(np.mean(bits))
    x = _matrix(run)[what.users]
    profile = np.mean(x @ what.item_degree / x.sum(1))
    assert found["popularity_lift@5"] == pytest.approx(what.item_degree[lists].mean() / profile - 1)


def test_groups() -> None:
    assert groups(np.array([3, 10, 10, 10, 10, 10])) == [Group(n, n) for n in range(6)]
    assert groups(np.array([0, 0, 100, 1])) == [Group(1, 2), Group(3, 3)]
    assert groups(np.array([4])) == [Group(0, 0)]


def test_bootstrap_sees_a_difference_and_its_size(opened: tuple[TrainedModel, Task]) -> None:
    run, _ = opened
    rng = np.random.default_rng(0)
    base = torch.from_numpy(rng.random(500))
    noise = torch.from_numpy(rng.normal(0, 0.1, 500))
    empty = torch.empty(500, 0)
    ours, theirs = Ranked(empty, {"m": base + noise + 0.05}), Ranked(empty, {"m": base})
    found = paired_bootstrap(run, ours, theirs)["m"]
    error = 0.1 / math.sqrt(500)
    assert found["difference"] == pytest.approx(0.05, abs=3 * error)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert found["p"] == pytest.approx(1 / 1000)
    nothing = paired_bootstrap(run, Ranked(empty, {"m": base + noise}), theirs)["m"]
    assert nothing["low"] < 0 < nothing["high"] or nothing["p"] > 0.01


def test_cold_ranks_untrained_items_only(opened: tuple[TrainedModel, Task]) -> None:
    run, _ = opened
    what = evaluation_task(run, "test", cold=True)
    assert what.item_degree[what.is_candidate].tolist() == [0]
    assert set(what.relevant.values.tolist()) == set(np.flatnonzero(what.is_candidate))
    assert evaluate_model(run, cold=True, baselines="none")["rankings"]["CM3"]["accuracy"]["recall@20"] == 1.0


def test_refusals(finished_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cases = {"baselines.unknown": ["--baselines", "popularity,best"], "run.missing": ["--against", str(tmp_path)]}
    for code, arguments in cases.items():
        assert refusal(main, [str(finished_run), *arguments], capsys).startswith(f"error[{code}]: ")


def test_the_command_prints_and_writes(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "figures.json"
    arguments = [str(finished_run), "--by", "popularity", "--by", "activity", "--neighbours", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["evaluate", *arguments, "--against", str(finished_run), "--resamples", "100"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for text in (
        "CM3",
        "popularity lift@20",
        "by training interactions of the items",
        "neighbours kept",
        "paired bootstrap",
    ):
        assert text in shown
    assert set(json.loads(out.read_text())["rankings"]) == {"CM3", "popularity", "ease", "other run"}


def test_a_large_catalogue_has_no_linear_baseline_by_default(
    opened: tuple[TrainedModel, Task], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cm3_dist.evaluation.linear_baselines.EASE_ITEMS", 10)
    monkeypatch.setattr("cm3_dist.evaluation.report.EASE_ITEMS", 10)
    with pytest.raises(InputError) as refused:
        ease(*opened)
    assert refused.value.code == "baselines.too-many-items"
    assert list(evaluate_model(opened[0])["rankings"]) == ["CM3", "popularity"]
    assert capsys.readouterr().err.count("\n") == 1


def test_neighbourhood_overlap_by_brute_force(opened: tuple[TrainedModel, Task]) -> None:
    run, _ = opened
    items = np.flatnonzero(run.shard.is_item)

    def nearest(rows: np.ndarray) -> list[set[int]]:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -2)
        return [set(row[:3].tolist()) for row in np.argsort(-cosine, axis=1)]

    found = neighbourhood_overlap(run, nearest=3)
    assert list(found) == ["image", "text", "fused", "ego", "final"]
    dim, ego = run.settings.model.dim, run.item_ego.double().numpy()[items]
    rows = {"text": ego[:, dim : 2 * dim], "fused": ego[:, 2 * dim :], "final": run.rows[1].double().numpy()[items]}
    for modality, values in run.features.gather(items).items():
        raw = nearest(values.double().numpy())
        for name, these in rows.items():
            shared = np.mean([len(a & b) / 3 for a, b in zip(raw, nearest(these), strict=True)])
            assert found[name][modality] == pytest.approx(shared, abs=0.01), (name, modality)
    assert found["text"]["text"] > 3 * 3 / len(items)
