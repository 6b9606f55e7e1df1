"""The sharding plan: TorchRec's planner held to row-wise, fused tables, and checked, for it drops tables silently."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping

import torch
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.optim import RowWiseAdagrad

from cm3_dist.distributed.runtime import Runtime

_OPTIMIZERS = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


def row_wise_plan(module: nn.Module, sharder: EmbeddingCollectionSharder, runtime: Runtime) -> tuple[ShardingPlan, str]:
    """Plans every table of `module` row-wise over all ranks. Collective. Returns the plan and its text.

    Raises:
        RuntimeError: a table is missing from the plan (torchrec#3652), or is not cut into equal blocks.
    """
    # The planner warns about dry runs and topology factories, which do not apply to one constrained layout.
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    names = [config.name for part in module.modules() for config in getattr(part, "embedding_configs", list)()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=runtime.world_size, compute_device=runtime.device.type),
        constraints=dict.fromkeys(names, _row_wise()),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        plan = planner.collective_plan(module, [sharder], runtime.group)
    found = {name: sharding for part in plan.plan.values() for name, sharding in part.items()}
    if missing := sorted(set(names) - set(found)):
        raise RuntimeError(f"TorchRec's plan lacks the table(s) {', '.join(missing)}; see torchrec#3652\n{plan}")
    for name, sharding in found.items():
        rows = {shard.shard_sizes[0] for shard in sharding.sharding_spec.shards}
        if (
            sharding.sharding_type != ShardingType.ROW_WISE.value
            or len(rows) != 1
            or len(sharding.ranks) != runtime.world_size
        ):
            raise RuntimeError(f"table {name} is not cut into {runtime.world_size} equal blocks of rows\n{plan}")
    return plan, str(plan)


def table_storage(
    tables: Mapping[str, tuple[int, int]], optimizer: str, world_size: int, device: str
) -> tuple[float, float]:
    """What TorchRec's planner reckons that one rank keeps: bytes of rows, and of their optimizer's state.

    Nothing is allocated, so tables and clusters may be of any size; whether it fits is the caller's to judge.

    Args:
        tables: name -> rows over all ranks, width.
        optimizer: as in the setting `tables.name`.
        world_size: ranks.
        device: "cpu" or "cuda".
    """
    rows = _stored(tables, None, world_size, device)
    return rows, _stored(tables, _OPTIMIZERS[optimizer], world_size, device) - rows


def _stored(
    tables: Mapping[str, tuple[int, int]], optimizer: type[torch.optim.Optimizer] | None, world_size: int, device: str
) -> float:
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    meta = torch.device("meta")
    # A table without an optimizer counts its rows only; the planner looks for its class at the parameter.
    module = nn.ModuleDict()
    for name, (rows, width) in tables.items():
        table = EmbeddingConfig(name=name, embedding_dim=width, num_embeddings=rows, feature_names=[name])
        module[name] = EmbeddingCollection(device=meta, tables=[table])
        if optimizer is not None:
            for parameter in module[name].parameters():
                parameter._optimizer_classes = [optimizer]  # type: ignore[attr-defined]
    room, node = 1 << 62, math.gcd(world_size, 8)  # a device's number has 7 bits: not all ranks on one machine
    topology = Topology(world_size, device, hbm_cap=room, ddr_cap=room, local_world_size=node)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=1,
        constraints=dict.fromkeys(tables, _row_wise()),
        storage_reservation=FixedPercentageStorageReservation(percentage=0),
        debug=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        planner.plan(module, [EmbeddingCollectionSharder()])
    shards = [option.shards[0] for option in planner._best_plan or []]
    assert len(shards) == len(tables)
    return float(sum(shard.storage.hbm + shard.storage.ddr for shard in shards))


def _row_wise() -> ParameterConstraints:
    return ParameterConstraints(
        sharding_types=[ShardingType.ROW_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
    )
