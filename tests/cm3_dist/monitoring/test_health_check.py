"""Every sign of a run that goes wrong is provoked, is explained in one line, and stays silent in a sound run."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3_dist.config.settings import Machine, Settings
from cm3_dist.distributed.oom_advice import explained
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import NotFiniteError, OutOfMemoryError
from cm3_dist.monitoring.health_check import inspect_fusion
from cm3_dist.monitoring.health_rules import Fusion
from cm3_dist.train import main
from cm3_dist.training.loop import run
from cm3_dist.training.trainer import Trainer
from partition.transform.dataset import TEST, VALIDATION, Dataset, Features
from tests.support.quoted import assert_quoted
from tests.support.ranks import run_ranks
from tests.support.refusals import refusal
from tests.support.small import prepare_small, small_dataset, small_settings


def train(settings: Settings) -> dict[str, Any]:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        return run(settings, runtime, False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("data"))


def scaled(dataset: Dataset, factors: dict[str, float]) -> Dataset:
    features = {
        name: Features((old.values.astype(np.float64) * factors.get(name, 1)).astype(np.float32), old.source_dim)
        for name, old in dataset.features.items()
    }
    return dataclasses.replace(dataset, features=features)


def test_a_sound_run_has_no_warnings(prepared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = train(small_settings(prepared, tmp_path / "run", train={"epochs": 4}))
    assert content["warnings"] == []
    assert "warning:" not in capfd.readouterr().err


def test_collapse(prepared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = train(small_settings(prepared, tmp_path / "run", train={"epochs": 8}, loss={"gamma": 0.0}))
    (line,) = content["warnings"]
    assert line.startswith("collapse: users and items move into one place (alignment 0.0")
    assert line.endswith("raise loss.gamma (now 0)")
    assert_quoted(f"warning: {line}")
    shown = [text for text in capfd.readouterr().err.splitlines() if text.startswith("warning:")]
    assert shown == [f"warning: {line}"]  # once, not after every epoch
    assert json.loads((tmp_path / "run/metrics.json").read_text())["warnings"] == [line]


def test_fused_rows_off_the_sphere(tmp_path: Path) -> None:
    dataset = scaled(small_dataset(), {"image": 1e25})
    prepared = prepare_small(tmp_path, dataset=dataset)
    (line,) = train(small_settings(prepared, tmp_path / "run"))["warnings"]
    assert line.startswith(
        "fused rows off the sphere: modality 'image' gives 60 of 60 items no direction; its features"
    )
    assert line.endswith("scale them to about 1 and prepare the data again")
    assert_quoted(f"warning: {line}")


@pytest.mark.slow
def test_a_fused_channel_that_is_emptied(prepared: Path, tmp_path: Path) -> None:
    fast = {"train": {"epochs": 20}, "evaluate": {"every": 5}, "dense": {"lr": 0.02}}
    (line,) = train(small_settings(prepared, tmp_path / "run", **fast))["warnings"]
    assert line.startswith("fused channel emptied: the fused rows of all items are alike (mean cosine 0.9")
    assert_quoted(f"warning: {line}")
    for name, section in {"detached": {"phi_gradient": False}, "plain": {"item_uniformity": "plain"}}.items():
        assert train(small_settings(prepared, tmp_path / name, loss=section, **fast))["warnings"] == []


def _off_sphere(prepared: Path, folder: Path) -> list[str]:
    return train(small_settings(prepared, folder))["warnings"]


def test_signs_are_those_of_all_ranks(tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path, dataset=scaled(small_dataset(), {"text": 1e25}))
    (line,), _ = run_ranks(_off_sphere, 2, prepared, tmp_path / "run")
    assert "'text' gives 60 of 60 items" in line


def test_a_rank_without_items_inspects_nothing(prepared: Path, tmp_path: Path) -> None:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        trainer = Trainer(small_settings(prepared, tmp_path), runtime)
        found = inspect_fusion(np.zeros(0, np.int64), trainer.features, trainer.model.encoder, runtime)
    assert found == Fusion(items=0, off_sphere={}, largest={"image": 0.0, "text": 0.0}, cosine=0.0)


def cold(shuffled: bool) -> Dataset:
    """A quarter of the items is held out; on request their features are those of other items."""
    dataset = small_dataset(users=400, items=800, degree=24, spread=1 / 40)
    rng = np.random.default_rng(5)
    held_out = rng.permutation(800)[:240]
    where = np.isin(dataset.item, held_out)
    split = np.where(where, np.where(dataset.item % 2, VALIDATION, TEST), 0).astype(np.int8)
    features = dict(dataset.features)
    if shuffled:
        for name, old in features.items():
            values = old.values.copy()
            values[held_out] = values[rng.permutation(held_out)]
            features[name] = Features(values, old.source_dim)
    return dataclasses.replace(dataset, split=split, split_method="cold_items", features=features)


@pytest.mark.parametrize("shuffled", [False, True])
def test_cold_items_like_random(shuffled: bool, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path, dataset=cold(shuffled), k=5)
    lines = train(small_settings(prepared, tmp_path / "run", train={"epochs": 4, "batch_size": 2048}))["warnings"]
    if not shuffled:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith("cold items are ranked like random: recall@20 0.")
    assert "among 240 items" in line
    assert "0.0833 at random" in line
    assert "--item-graph-k" in line
    assert_quoted(f"warning: {line}")


def test_values_that_are_not_finite_name_the_rate(prepared: Path, tmp_path: Path) -> None:
    settings = small_settings(prepared, tmp_path / "run", dense={"lr": 1e38}, model={"encoder_precision": "bfloat16"})
    with pytest.raises(NotFiniteError) as caught:
        train(settings)
    assert caught.value.code == "training.not-finite"
    assert "start again with a lower" in str(caught.value)
    assert "dense.lr (now 1e+38)" in str(caught.value)
    assert "model.encoder_precision=float32" in str(caught.value)
    assert_quoted("error: " + re.sub(r"\w+ is nan", "item_uniformity is nan", str(caught.value)))


def _too_much_numpy(*_: Any) -> None:
    np.empty(1 << 60, np.uint8)


def _too_much_torch(*_: Any) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


@pytest.mark.parametrize("allocate", [_too_much_numpy, _too_much_torch])
def test_memory_that_runs_out(
    allocate: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare_small(tmp_path, dataset=small_dataset(items=100, users=100, widths=(65_536, 8)))
    monkeypatch.setattr("cm3_dist.training.trainer.ItemFeatures", allocate)
    line = refusal(main, [f"data.path={prepared}", f"run.dir={tmp_path / 'run'}", "machine.device=cpu"], capsys)
    assert line.startswith(
        "error[memory.exhausted]: rank 0: out of memory; try narrower features (prepare again with --pca image=256"
    )
    assert "65536 wide" in line
    assert_quoted(line)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError("Unable to allocate")]
)
def test_memory_errors_of_all_kinds(error: Exception, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryError, match="rank 3: out of"), explained(small_settings(prepared, tmp_path), 3):
        raise error


def test_other_errors_stay_what_they_are(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), explained(small_settings(prepared, tmp_path), 0):
        raise RuntimeError("shape mismatch")
