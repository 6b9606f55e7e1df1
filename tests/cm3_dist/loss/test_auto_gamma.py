"""Automatic gamma: push equals pull, and the value does not depend on the number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.shard import load_shard
from cm3_dist.loss.auto_gamma import degree_sums, typical_degree
from cm3_dist.loss.constants import LossConstants
from cm3_dist.training.trainer import Trainer
from partition.transform.dataset import TRAIN
from tests.support.small import prepare_small, small_dataset, small_settings, weighted_dataset


def _expected(t: float, weighted: bool) -> float:
    """Item by item: the geometric mean, over interactions, of the gamma at which the item's push equals its pull."""
    dataset = weighted_dataset() if weighted else small_dataset()
    train = dataset.split == TRAIN
    item = dataset.item[train]
    weight = np.ones(len(item)) if dataset.weight is None else dataset.weight[train].astype(np.float64)
    degree = np.bincount(item, weight)
    mean = weight.sum() / np.count_nonzero(degree)
    return float(np.exp(np.average([np.log(degree[i] / mean / t) for i in item], weights=weight)))


@pytest.mark.parametrize("weighted", [False, True])
def test_gamma_is_where_push_equals_pull(weighted: bool, tmp_path: Path) -> None:
    prepared, found = prepare_small(tmp_path, weighted=weighted), []
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        shard = load_shard(prepared, 0, 1, "none")
        for loss in ({}, {"t": 3.0}, {"item_uniformity": "none"}, {"in_batch_correction": "none"}, {"gamma": 0.3}):
            settings = small_settings(prepared, prepared, loss={"gamma": "auto", **loss})
            found.append(LossConstants.from_data(settings, shard, runtime).gamma)
    assert found[:2] == pytest.approx([_expected(2.0, weighted), _expected(3.0, weighted)], rel=1e-12)
    assert found[2:] == [0.5, 0.5, 0.3]  # users alone, and items pushed by popularity: 1/t
    assert found[0] > 0.5


@pytest.mark.parametrize("weighted", [False, True])
def test_gamma_is_the_same_on_any_number_of_ranks(weighted: bool, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path, weighted=weighted)
    sums = {}
    for ranks in (1, 2, 4):  # each part is one rank's, the others add zeros: in any order the sum is exact
        shards = [load_shard(prepared, rank, ranks, "none") for rank in range(ranks)]
        sums[ranks] = torch.stack([degree_sums(shard) for shard in shards]).sum(0)
    assert typical_degree(sums[1]) == typical_degree(sums[2]) == typical_degree(sums[4])


def test_a_step_with_auto_is_one_with_that_number(tmp_path: Path) -> None:
    prepared, steps = prepare_small(tmp_path), []
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        gamma: Any = "auto"
        for _ in range(2):
            trainer = Trainer(small_settings(prepared, tmp_path / "run", loss={"gamma": gamma}), runtime)
            assert ("gamma" in trainer.describe()) == (gamma == "auto")
            gamma = trainer.loss_constants.gamma
            steps.append([trainer.step(plan).stacked().tolist() for plan in trainer.planner.plans(0, 0, 2)])
    assert steps[0] == steps[1]
