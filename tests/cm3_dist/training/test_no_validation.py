"""Training on data without validation interactions: a fixed number of epochs, and the last state is the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3_dist import load_run
from cm3_dist.config.settings import Machine, Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.training.loop import run
from jobs.collect import collect
from jobs.curves import curves
from jobs.report import report
from jobs.table import table
from partition.errors import InputError
from partition.folder.verify import verify
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Dataset
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_dataset, small_settings
from tests.support.study import call

FIXED = {"epochs": 3, "patience": 0}


def without(*labels: int) -> Dataset:
    """The small data set whose interactions in these splits are for training."""
    dataset = small_dataset()
    return replace(dataset, split=np.where(np.isin(dataset.split, labels), TRAIN, dataset.split).astype(np.int8))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder in which all interactions are for training."""
    return prepare_small(tmp_path_factory.mktemp("everything"), dataset=without(VALIDATION, TEST))


@pytest.fixture(scope="module")
def no_validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with test interactions, but none for validation."""
    return prepare_small(tmp_path_factory.mktemp("no-validation"), dataset=without(VALIDATION))


def trained(settings: Settings, resume: bool = False) -> dict[str, Any]:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        return run(settings, runtime, resume)


def embeddings(folder: Path) -> np.ndarray:
    with load_run(folder) as opened:
        return opened.embeddings("user")[1]


def test_everything_is_trained_on(everything: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(everything)
    folder = tmp_path / "run"
    content = trained(small_settings(everything, folder, train=FIXED))
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(content))
    assert (content["evaluated"], content["validation"], content["test"], content["baselines"]) == ([], {}, {}, {})
    assert (content["epochs"], content["best_epoch"]) == (3, 2)
    assert not (folder / "evaluations.jsonl").exists() or not (folder / "evaluations.jsonl").read_text()
    assert "nothing was evaluated" in capsys.readouterr().out
    with load_run(folder) as best, load_run(folder, checkpoint="latest") as latest:
        assert best.embeddings("item")[1].tobytes() == latest.embeddings("item")[1].tobytes()
        assert best.recommend(["u7"], k=2, exclude_held_out=True).num_rows == 2
        assert len(best.similar(1003, k=3)) == 3
        best.export(tmp_path / "rows")
        for split in ("validation", "test"):
            with pytest.raises(InputError, match="prepare with another --split") as caught:
                best.evaluate(split)
            assert caught.value.code == "evaluation.empty"
    assert json.loads((tmp_path / "rows" / "manifest.json").read_text())["best_epoch"] == 2


def test_the_model_is_the_last_state_also_after_resuming(everything: Path, tmp_path: Path) -> None:
    """Training for one epoch and on to three, with checkpoints in between, ends in the same model."""
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    trained(small_settings(everything, whole, train=FIXED, evaluate={"every": 2}))
    trained(small_settings(everything, halves, train={"epochs": 1, "patience": 0}))
    first = embeddings(halves)
    content = trained(small_settings(everything, halves, train=FIXED), resume=True)
    assert content["best_epoch"] == 2
    assert not np.array_equal(embeddings(halves), first)
    np.testing.assert_array_equal(embeddings(halves), embeddings(whole))


def test_the_test_is_measured_after_the_last_epoch(no_validation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    content = trained(small_settings(no_validation, folder, train=FIXED))
    assert content["evaluated"] == ["test"]
    assert content["validation"] == {}
    assert content["best_epoch"] == 2
    assert set(content["baselines"]) == {"popularity", "random"}
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["test"]
    with load_run(folder) as opened:
        accuracy = opened.evaluate("test")["rankings"]["CM3"]["accuracy"]
        assert accuracy == pytest.approx(content["test"])
        with pytest.raises(InputError, match="use --split test"):
            opened.evaluate("validation")


def test_early_stopping_needs_validation(everything: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        trained(small_settings(everything, tmp_path / "run", train={"epochs": 3}))
    assert caught.value.code == "split.no-validation"
    assert "train.patience=0" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_patience_of_zero_trains_all_epochs(tmp_path: Path) -> None:
    """With learning rates that ruin the model after a good start."""
    rates: dict[str, Any] = {"dense": {"lr": 0.5}, "tables": {"lr": 5.0}}
    prepared = prepare_small(tmp_path)
    epochs = []
    for patience in (0, 2):
        settings = small_settings(
            prepared, tmp_path / f"run-{patience}", train={"epochs": 25, "patience": patience}, **rates
        )
        content = trained(settings)
        assert content["evaluated"] == ["validation", "test"]
        epochs.append(content["epochs"])
    assert epochs[0] == 25
    assert epochs[1] < 25


def test_users_are_sampled_from_none(everything: Path, tmp_path: Path) -> None:
    content = trained(small_settings(everything, tmp_path / "run", train=FIXED, evaluate={"users": 5, "test_users": 5}))
    assert content["evaluated"] == []


def on_ranks(prepared: Path, folder: Path) -> dict[str, Any]:
    return trained(small_settings(prepared, folder, train=FIXED))


def test_two_ranks(everything: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for content in run_ranks(on_ranks, 2, everything, tmp_path / "two"):
        assert (content["evaluated"], content["best_epoch"]) == ([], 2)
    trained(small_settings(everything, tmp_path / "one", train=FIXED))
    np.testing.assert_allclose(embeddings(tmp_path / "two"), embeddings(tmp_path / "one"), rtol=1e-3, atol=1e-4)


def test_nothing_is_chosen_among_runs_that_were_not_evaluated(
    everything: Path, no_validation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"epochs": 1, "patience": 0}
    for seed in (1, 2):
        trained(small_settings(everything, tmp_path / f"a/seed={seed}", train={**train, "seed": seed}))
        trained(small_settings(no_validation, tmp_path / f"b/seed={seed}", train={**train, "seed": seed}))
    assert len(collect([tmp_path])[0]) == 4
    capsys.readouterr()
    refusals: list[tuple[Callable[..., Any], list[Any], str]] = [
        (report, [tmp_path / "a"], "split.no-validation"),
        (table, [tmp_path / "a"], "split.no-validation"),
        (table, [tmp_path / "b"], "split.no-validation"),
        (curves, [tmp_path / "a", "--x", "loss.gamma", "--picture", tmp_path / "x.png"], "curves.missing"),
    ]
    for command, arguments, code in refusals:
        assert call(command, *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"error[{code}]: ")
        assert "\n" not in error
    assert call(report, tmp_path / "b") == 0  # compared on the test
