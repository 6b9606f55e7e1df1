"""The machine's memory limits sharding plans, not TorchRec's defaults. Tables are on the meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder

from cm3_dist.config.settings import Machine, TableOptimizer
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import InputError
from cm3_dist.model import sharding_plan
from cm3_dist.model.embedding_tables import _collection, _fused, _Lookup

ROWS, DIM = 250_000_000, 192  # 179 GiB, above TorchRec's default of 128 GiB


def _module() -> tuple[nn.Module, EmbeddingCollectionSharder]:
    fused = _fused(TableOptimizer(), torch.device("cpu"))
    return _Lookup({"users": _collection("users", ROWS, DIM)}), EmbeddingCollectionSharder(fused_params=fused)


def test_the_memory_of_the_machine_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        monkeypatch.setattr(sharding_plan, "memory_caps", lambda _: {"ddr_cap": 1 << 40})
        plan, text = sharding_plan.row_wise_plan(*_module(), runtime)
        assert "users" in text
        (sharding,) = next(iter(plan.plan.values())).values()
        assert [shard.shard_sizes for shard in sharding.sharding_spec.shards] == [[ROWS, DIM]]
        monkeypatch.setattr(sharding_plan, "memory_caps", lambda _: {"ddr_cap": 1 << 30})
        with pytest.raises(InputError) as error:
            sharding_plan.row_wise_plan(*_module(), runtime)
    assert error.value.code == "tables.memory"
    assert "\n" not in str(error.value)


def test_ranks_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = sharding_plan.memory_caps(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert sharding_plan.memory_caps(torch.device("cpu")) == {"ddr_cap": alone["ddr_cap"] // 4}
