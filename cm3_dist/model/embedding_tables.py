"""The sharded tables in TorchRec: user channels, user mixing logits and, optionally, item embeddings.

Row-wise sharding cuts a table into W equal blocks. Tables have P * stride rows, so a rank's block is exactly the rows
of its parts: looking up its own rows is local, and `local_state` needs no gathering. Only this file and
`model/sharding_plan.py` import TorchRec.

Shapes: n users and m items on this rank, b users in the batch, C channels of width d.
"""

from __future__ import annotations

from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.comm_ops import set_gradient_division
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from cm3_dist.config.settings import Settings, TableOptimizer
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.seeding import Stream, key
from cm3_dist.errors import AgreedError
from cm3_dist.model.dimensions import CHANNELS, ITEM_IDS, MIXING, Dimensions, tables
from cm3_dist.model.local_table import LocalTable, can_update
from cm3_dist.model.sharding_plan import row_wise_plan
from partition.folder.manifest import Manifest

_OPTIMIZERS = {
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adam": EmbOptimType.ADAM,
}


class EmbeddingTables(nn.Module):
    """Looks up this rank's rows. One table holds all C channels of a user: one lookup, one row of optimizer state.

    TorchRec's division of gradients by the world size is switched off: the loss is global, and the owner of a row
    receives its complete gradient.

    Raises:
        InputError: the optimizer does not exist on this device, or the tables do not fit into memory.
    """

    def __init__(self, manifest: Manifest, parts: range, settings: Settings, runtime: Runtime) -> None:
        super().__init__()
        self.parts, self._skip = parts, settings.train.on_nan == "skip"
        self._channels = Dimensions.of(manifest, settings).channels
        self.init_std = settings.model.user_init_std or (2 / (manifest.users + settings.model.dim)) ** 0.5
        collections = {name: _collection(name, *shape) for name, shape in tables(manifest, settings).items()}
        module = _Lookup(collections)
        set_gradient_division(False)
        sharder = EmbeddingCollectionSharder(fused_params=_fused(settings.tables, runtime.device))
        plan, self.plan = row_wise_plan(module, sharder, runtime)
        self.model = DistributedModelParallel(
            module,
            env=ShardingEnv.from_process_group(runtime.group),
            device=runtime.device,
            plan=plan,
            sharders=[sharder],
            init_data_parallel=False,
        )
        self._initialise(manifest, settings)
        no_rows = torch.empty(0, dtype=torch.int64, device=runtime.device)
        self.model(dict.fromkeys(collections, no_rows))
        state, optimizer, first_user = self.local_state(), settings.tables, parts.start * manifest.user_stride
        first = {CHANNELS: first_user, MIXING: first_user, ITEM_IDS: parts.start * manifest.item_stride}
        self._local = {
            name: LocalTable(state[name], state.get(f"{name}.momentum1"), optimizer, first[name])
            for name in collections
            if can_update(optimizer)
        }

    def forward(self, users: Tensor, mixed: Tensor, items: Tensor, whole: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Looks up rows of this rank by global number.

        Args:
            users: [n] int64, distinct users whose channels are needed.
            mixed: [b] int64, distinct users whose mixing logits are needed.
            items: [m] int64, distinct items.
            whole: `users` and `items` are all rows of this rank, in order.

        Returns:
            Channels [n, C * d], mixing logits [b, C], and item embeddings [m, d] or None.
        """
        asked = {CHANNELS: users, MIXING: mixed, ITEM_IDS: items}
        if self._local:
            found = {
                name: local.all() if whole and name != MIXING else local.some(asked[name])
                for name, local in self._local.items()
            }
        else:
            found = self.model(asked)
        if self._skip:
            found = {name: _Finite.apply(rows) for name, rows in found.items()}
        return found[CHANNELS], found[MIXING][:, : self._channels], found.get(ITEM_IDS)

    @property
    def channels(self) -> Tensor:
        """This rank's rows of the user channels, [local users, C * d]. Shared memory."""
        return self.local_state()[CHANNELS]

    def local_state(self) -> dict[str, Tensor]:
        """This rank's rows of every table and its optimizer state: name -> [local rows, ...]. Shared memory."""
        state = {name.split(".")[-2]: _local(value) for name, value in self.model.state_dict().items()}
        for values in self.model.fused_optimizer.state_dict()["state"].values():
            state.update({name: _local(value) for name, value in values.items()})
        return state

    @torch.no_grad()
    def _initialise(self, manifest: Manifest, settings: Settings) -> None:
        """User channels xavier-normal (TorchRec's default range shrinks as tables grow), everything else zero."""
        state = self.local_state()
        for index, part in enumerate(self.parts):
            rows = state[CHANNELS][index * manifest.user_stride : (index + 1) * manifest.user_stride]
            generator = torch.Generator().manual_seed(key(Stream.INIT, settings.train.seed, part))
            rows.copy_(torch.empty(rows.shape).normal_(0, self.init_std, generator=generator))
        for name in (MIXING, ITEM_IDS):
            if name in state:
                state[name].zero_()


class _Finite(torch.autograd.Function):
    """The identity, whose backward pass replaces rows of the gradient that are not finite by zero."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # type: ignore[override]
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.where(torch.isfinite(gradient).all(1, keepdim=True), gradient, 0)


class _Lookup(nn.Module):
    """One EmbeddingCollection per table, each with one feature of the same name."""

    def __init__(self, collections: dict[str, EmbeddingCollection]) -> None:
        super().__init__()
        self.collections = nn.ModuleDict(collections)

    def forward(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, ids in rows.items():
            if name not in self.collections:
                continue
            collection = self.collections[name]
            lengths = torch.full(
                (1,), len(ids), dtype=torch.int64, device=ids.device
            )  # filled there: no copy to wait for
            found[name] = collection(KeyedJaggedTensor(keys=[name], values=ids, lengths=lengths))
        # All lookups are started before the first one is waited for.
        return {name: result[name].values() for name, result in found.items()}


def _collection(name: str, rows: int, width: int) -> EmbeddingCollection:
    config = EmbeddingConfig(name=name, embedding_dim=width, num_embeddings=rows, feature_names=[name])
    return EmbeddingCollection(device=torch.device("meta"), tables=[config])


def _fused(optimizer: TableOptimizer, device: torch.device) -> dict[str, object]:
    if optimizer.name == "adam" and device.type == "cpu":
        raise AgreedError(
            "tables.name = 'adam': FBGEMM has no fused Adam on the CPU; use tables.name=rowwise_adagrad, or a GPU",
            "tables.optimizer",
        )
    if optimizer.weight_decay and optimizer.name in ("adagrad", "sgd"):
        raise AgreedError(
            f"tables.weight_decay = {optimizer.weight_decay:g}: FBGEMM's {optimizer.name} has none; use "
            "tables.name=rowwise_adagrad, or on a GPU adam",
            "tables.optimizer",
        )
    fused: dict[str, object] = {
        "optimizer": _OPTIMIZERS[optimizer.name],
        "learning_rate": optimizer.lr,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if optimizer.name == "rowwise_adagrad":  # it ignores weight decay unless a mode is set
        fused["weight_decay_mode"] = WeightDecayMode.L2
    return fused


def _local(value: object) -> Tensor:
    shards = value.local_shards()  # type: ignore[attr-defined]
    assert len(shards) == 1
    tensor: Tensor = shards[0].tensor
    return tensor
