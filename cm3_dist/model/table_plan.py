"""The sharding plan: TorchRec's planner held to row-wise, fused tables, and checked, for it drops tables silently."""

from __future__ import annotations

import logging
import warnings

from torch import nn

from cm3_dist.light_imports import light_imports
from cm3_dist.runtime import Runtime

with light_imports():
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.types import ShardingPlan, ShardingType


def row_wise_plan(module: nn.Module, sharder: EmbeddingCollectionSharder, runtime: Runtime) -> tuple[ShardingPlan, str]:
    """Plans every table of `module` row-wise over all ranks. Collective. Returns the plan and its text.

    Raises:
        RuntimeError: a table is missing from the plan (torchrec#3652), or is not cut into equal blocks.
    """
    # The planner warns about dry runs and topology factories, which do not apply to one constrained layout.
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    names = [config.name for part in module.modules() for config in getattr(part, "embedding_configs", list)()]
    constraint = ParameterConstraints(
        sharding_types=[ShardingType.ROW_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
    )
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=runtime.world_size, compute_device=runtime.device.type),
        constraints=dict.fromkeys(names, constraint),
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
