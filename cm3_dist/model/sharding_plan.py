"""The sharding plan: TorchRec's planner, restricted to row-wise fused tables.

The plan is checked, because the planner may leave out a table without an error (torchrec#3652).
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Mapping

import psutil
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.optim import RowWiseAdagrad

from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.errors import InputError

_OPTIMIZERS = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
}


def row_wise_plan(module: nn.Module, sharder: EmbeddingCollectionSharder, runtime: Runtime) -> tuple[ShardingPlan, str]:
    """Plans every table of `module` row-wise over all ranks. Collective.

    Returns:
        The plan, and the same as text.

    Raises:
        InputError: a rank's share of the tables does not fit into its memory.
        RuntimeError: a table is missing from the plan (torchrec#3652), or is not cut into equal blocks.
    """
    # The planner's warnings about dry runs and topology factories do not apply: the layout is fixed.
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    names = [config.name for part in module.modules() for config in getattr(part, "embedding_configs", list)()]
    planner = EmbeddingShardingPlanner(
        topology=Topology(runtime.world_size, runtime.device.type, **memory_caps(runtime.device)),
        constraints=dict.fromkeys(names, _row_wise()),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
    )
    plan = _planned_on_rank_0(planner, module, sharder, runtime)
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


def _planned_on_rank_0(
    planner: EmbeddingShardingPlanner, module: nn.Module, sharder: EmbeddingCollectionSharder, runtime: Runtime
) -> ShardingPlan:
    """As `planner.collective_plan`, but when rank 0 fails all ranks raise InputError instead of waiting for it."""
    result: list[ShardingPlan | None] = [None]

    def plan() -> None:
        if runtime.rank != 0:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                result[0] = planner.plan(module, [sharder])
        except PlannerError as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no plan")
            raise InputError(
                f"the tables do not fit on {runtime.world_size} rank(s): {reason}; use more ranks or machines "
                "(`python -m cm3_dist.capacity` says how many), or a smaller model.dim",
                "tables.memory",
            ) from None

    agree_on_error(runtime, plan)
    dist.broadcast_object_list(result, group_src=0, group=runtime.control)
    assert result[0] is not None
    return result[0]


def memory_caps(device: torch.device) -> dict[str, int]:
    """Memory that one rank may use, in bytes, as arguments of `Topology`, which otherwise assumes 32 and 128 GiB."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    caps = {"ddr_cap": psutil.virtual_memory().total // ranks_here}
    if device.type == "cuda":
        caps["hbm_cap"] = torch.cuda.get_device_properties(device).total_memory
    return caps


def table_storage(
    tables: Mapping[str, tuple[int, int]], optimizer: str, world_size: int, device: str
) -> tuple[float, float]:
    """TorchRec's estimate of the memory per rank: bytes of rows, and of their optimizer state.

    Nothing is allocated and no limit applies, so tables and clusters may be of any size.

    Args:
        tables: name -> (rows over all ranks, width).
        optimizer: a value of the setting `tables.name`.
        world_size: number of ranks.
        device: "cpu" or "cuda".
    """
    rows = _stored(tables, None, world_size, device)
    return rows, _stored(tables, _OPTIMIZERS[optimizer], world_size, device) - rows


def _stored(
    tables: Mapping[str, tuple[int, int]], optimizer: type[torch.optim.Optimizer] | None, world_size: int, device: str
) -> float:
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)
    meta = torch.device("meta")
    # The planner finds the optimizer's class on the parameter; without one it counts the rows only.
    module = nn.ModuleDict()
    for name, (rows, width) in tables.items():
        table = EmbeddingConfig(name=name, embedding_dim=width, num_embeddings=rows, feature_names=[name])
        module[name] = EmbeddingCollection(device=meta, tables=[table])
        if optimizer is not None:
            for parameter in module[name].parameters():
                parameter._optimizer_classes = [optimizer]  # type: ignore[attr-defined]
    # No limit. At most 8 ranks per machine, because the planner stores a device's index in 7 bits.
    room, node = 1 << 62, math.gcd(world_size, 8)
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
