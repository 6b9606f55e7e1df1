"""The properties of training, on every backend."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from tests.cm3_dist.training.trainer_properties import TrainerProperties


class TestOneProcess(TrainerProperties):
    world_size = 1


class TestTwoRanks(TrainerProperties):
    world_size = 2


class TestFourRanks(TrainerProperties):
    world_size = 4


class TestSampledWithAllNeighbours(TrainerProperties):
    sections: ClassVar[dict[str, Any]] = {"propagation": {"mode": "sampled", "fanouts": [-1]}}


class TestSampledWithAllNeighboursOnTwoRanks(TrainerProperties):
    world_size = 2
    sections: ClassVar[dict[str, Any]] = {"propagation": {"mode": "sampled", "fanouts": [-1]}}


class TestWeighted(TrainerProperties):
    weighted = True


class TestWeightedOnTwoRanks(TrainerProperties):
    world_size = 2
    weighted = True


class TestWeightedSampledWithAllNeighboursOnTwoRanks(TrainerProperties):
    world_size = 2
    weighted = True
    sections: ClassVar[dict[str, Any]] = {"propagation": {"mode": "sampled", "fanouts": [-1]}}


@pytest.mark.slow
class TestWeightedOnFourRanks(TrainerProperties):
    world_size = 4
    weighted = True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch.cuda.is_available() is False")
class TestGpu(TrainerProperties):
    sections: ClassVar[dict[str, Any]] = {"machine": {"device": "cuda"}}
    tolerance = 1e-3
