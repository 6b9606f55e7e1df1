"""A trained model, loaded from a run's checkpoint on any number of ranks: its embeddings before and after propagation.

Nothing of training is loaded: no optimizer state, no TorchRec tables, no batches. A rank reads the table rows of its
own parts as plain tensors and turns them into final embeddings in place. It holds its shard of the data, one row per
own user and item, and the small item encoder; the propagation operator exists only while it is applied.

Shapes: n users and m items of this rank, C channels of width d, the fused one last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.checkpoint.dcp_io import check_fit, read_tensors
from cm3_dist.checkpoint.manager import CheckpointManager
from cm3_dist.checkpoint.same_run import check_same_run
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.host_memory import release_free_memory
from cm3_dist.distributed.oom_advice import explained
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.errors import InputError
from cm3_dist.graph.full_graph import exact_propagation
from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.graph.shard import load_shard
from cm3_dist.inference.id_map import IdMap
from cm3_dist.kernels import check_kernels
from cm3_dist.model.dimensions import CHANNELS, ITEM_IDS, MIXING, tables
from cm3_dist.model.final_rows import (
    FINAL_COLUMNS,
    encode_all_items,
    encode_items,
    mix_channels,
    normalize_channels_,
    propagate_all,
)
from cm3_dist.model.item_encoder import ItemEncoder
from cm3_dist.pipeline.device_transfer import to_device
from cm3_dist.pipeline.item_features import ItemFeatures
from cm3_dist.ranking.evaluator import Evaluator


@dataclass(frozen=True)
class LayerOutputs:
    """Intermediate layer outputs needed to place unseen users and items (`cm3_dist.inference.cold_start`)."""

    items: Tensor | None  # [m, C * d] E + A E + ... + A^(L-1) E: the input of the users' last layer; None if L = 0
    similar: list[Tensor]  # R, S R, ...: per item-item layer its input [m, C * d]
    mixing: Tensor  # [C] mean logits of all trained users


@contextmanager
def open_model(settings: Settings, checkpoint: str = "best") -> Iterator[TrainedModel]:
    """Joins the ranks and loads the model; leaves the ranks at the end of the block.

    Raises:
        InputError: as `TrainedModel`.
        OutOfMemoryError: an allocation in the block failed.
    """
    with distributed(settings.machine) as runtime, explained(settings, runtime.rank, training=False):
        yield TrainedModel(settings, runtime, checkpoint)


class TrainedModel:
    """The model of a run, and this rank's shard of the data it was trained on.

    All methods and properties but `encode` and `mix` are collective.

    Args:
        settings: of the run.
        runtime: this rank.
        checkpoint: "best", "latest" or the name of a checkpoint.

    Raises:
        InputError: there is no such checkpoint, or it does not fit the data, the settings or the number of ranks.
    """

    def __init__(self, settings: Settings, runtime: Runtime, checkpoint: str = "best") -> None:
        self.settings, self.runtime, self.folder = settings, runtime, settings.run.dir
        data = settings.data
        self._kernels = check_kernels(settings.machine.kernels, runtime.device.type)
        self.shard = agree_on_error(
            runtime, lambda: load_shard(data.path, runtime.rank, runtime.world_size, data.check)
        )
        self.manifest = self.shard.manifest
        self.features = agree_on_error(runtime, lambda: ItemFeatures(data.path, self.manifest, self.shard.parts))
        self.evaluator = Evaluator(self.shard, settings, runtime)
        self.user_ids = IdMap(self.shard.root, self.manifest, "user")
        self.item_ids = IdMap(self.shard.root, self.manifest, "item")
        checkpoints = CheckpointManager(self.folder / "checkpoints", settings.run.keep, runtime)
        self.checkpoint = _find_checkpoint(checkpoints, checkpoint, runtime)
        self.record = checkpoints.peek(self.checkpoint)  # as trainer_state.save wrote it
        check_same_run(self.checkpoint, self.record, self.manifest, settings)
        dims = {modality.name: modality.dim for modality in self.manifest.modalities}
        self._encoder = ItemEncoder.of(dims, settings.model, seed=0).to(runtime.device)
        weights = {f"encoder/{name}": weight.detach() for name, weight in self._encoder.named_parameters()}
        checkpoints.load(self.checkpoint, {}, weights)
        on_meta = self._state(self._empty_tables(torch.device("meta")))
        agree_on_error(runtime, lambda: check_fit(self.checkpoint, on_meta))

    @property
    def channels(self) -> list[str]:
        """Names of the C channels of an embedding, in order."""
        return [*(modality.name for modality in self.manifest.modalities), "fused"]

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Final embeddings of this rank's users [n, C * d] and items [m, C * d], float32, computed on first use.

        The inner product of a user's and an item's is the score; they are not normalised.
        """
        users, items, mixing = self.ego_rows()
        propagate_all(users, items, mixing, self._propagation())
        return users, items

    @cached_property
    def item_ego(self) -> Tensor:
        """This rank's item embeddings before propagation, [m, C * d]: each channel has norm 1."""
        return self.ego_rows()[1]

    @cached_property
    @torch.no_grad()
    def layers(self) -> LayerOutputs:
        """Intermediate layer outputs of this rank's items."""
        users, items, mixing = self.ego_rows()
        trained = torch.from_numpy(self.shard.user_degree > 0).to(mixing.device)
        total = torch.cat([mixing[trained].sum(0), trained.sum().reshape(1).to(mixing)])
        if self.runtime.rows_group is not None:
            dist.all_reduce(total, group=self.runtime.rows_group)
        propagation = self._propagation()
        before = torch.empty_like(items) if propagation.hops else None
        similar = [torch.empty_like(items) for _ in propagation.similar]
        for begin in range(0, items.shape[1], FINAL_COLUMNS):
            columns = slice(begin, begin + FINAL_COLUMNS)
            user_block, item_block = users[:, columns].contiguous(), items[:, columns].contiguous()
            u, i = user_block, item_block
            for hop in reversed(propagation.hops):
                assert before is not None
                before[:, columns] = i
                u, i = hop.user_from_item.forward(i).add_(user_block), hop.item_from_user.forward(u).add_(item_block)
            for layer, (_, relation) in enumerate(propagation.similar):
                if layer > 0:
                    i = relation.forward(i)
                similar[layer][:, columns] = i
        return LayerOutputs(before, similar, total[:-1] / total[-1])

    def encode(self, features: dict[str, Tensor], missing: dict[str, Tensor]) -> Tensor:
        """Embeddings [., C * d] before propagation of items with features modality -> [., d_m].

        `missing`: modality -> [.] bool, the items that lack it.
        """
        return encode_items(self._encoder, features, missing)

    def mix(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Multiplies each channel of user rows [., C * d] by its share, the softmax of `logits` [., C]."""
        return mix_channels(rows, logits)

    def ego_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings before propagation, users [n, C * d] and items [m, C * d], and the users' logits [n, C]."""
        found = self._empty_tables(self.runtime.device)
        read_tensors(self.checkpoint, self._state(found), self.runtime.control)
        users = normalize_channels_(found[CHANNELS], self.settings.model.dim)
        items = torch.empty(self.shard.item_rows, users.shape[1], device=users.device)
        encode_all_items(self._encoder, self.features, found.get(ITEM_IDS), out=items)
        return users, items, found[MIXING][:, : len(self.channels)]

    def _propagation(self) -> Propagation:
        """The exact operator, forward only, on the device."""
        layers, runtime = self.settings.propagation, self.runtime
        operator = exact_propagation(
            self.shard,
            layers.user_item_layers,
            layers.item_item_layers,
            runtime.group,
            runtime.control,
            adjoint=False,
            kernels=self._kernels,
        )
        release_free_memory()  # building it took several times its size
        return to_device(operator, self.runtime.device)

    def _empty_tables(self, device: torch.device) -> dict[str, Tensor]:
        """Tables by name, uninitialised: [n or m, width]."""
        shapes, ranks = tables(self.manifest, self.settings), self.runtime.world_size
        return {name: torch.empty(rows // ranks, width, device=device) for name, (rows, width) in shapes.items()}

    def _state(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """The rows of each part by their key in a checkpoint; views."""
        parts = self.shard.parts
        return {
            f"part-{part:05d}/{name}": rows
            for name, table in found.items()
            for part, rows in zip(parts, table.chunk(len(parts)), strict=True)
        }


def _find_checkpoint(checkpoints: CheckpointManager, name: str, runtime: Runtime) -> Path:
    path = checkpoints.best() if name == "best" else checkpoints.newest()
    if path is None:
        raise InputError(f"{checkpoints.folder}: no checkpoint here; train until the first evaluation", "run.untrained")
    if name in ("best", "latest"):
        return path
    named = checkpoints.folder / name

    def check() -> None:
        names = sorted(found.name for found in checkpoints.folder.glob("step-????????"))
        if name not in names:
            raise InputError(f"{named}: no such checkpoint; there are {', '.join(names)}", "checkpoint.missing")

    agree_on_error(runtime, check)
    return named
