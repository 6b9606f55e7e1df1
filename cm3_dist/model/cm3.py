"""CM3: sharded user tables and encoded items, propagated over both graphs (docs/model.md).

Legend of shapes: n users and m items enter the propagation on this rank, C = M + 1 channels of width d, the fused one
last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.distributed.seeding import Stream, key
from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.model.embedding_tables import Tables
from cm3_dist.model.item_encoder import ItemEncoder
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.pipeline.item_features import ItemFeatures
from cm3_dist.pipeline.step_plan import Inputs, StepPlan
from partition.folder.manifest import Manifest

ENCODE_BLOCK = 65_536  # rows encoded or mixed at a time when no gradient is wanted
FINAL_COLUMNS = 16  # propagated at a time: a cache line a row


@dataclass(frozen=True)
class Ego:
    """Rows before propagation: `users` [n, C * d] and `items` [m, C * d] of unit channels, `fused` [m, d] of norm 1."""

    users: Tensor
    items: Tensor
    mixing: Tensor  # [b, C] logits of the batch's distinct users
    fused: Tensor
    looked_up: Tensor  # [n, C * d] the table's rows, whose gradient is the table's


class CM3(nn.Module):
    """The model on one rank: its shard of the tables, and a replica of the item encoder."""

    def __init__(self, manifest: Manifest, parts: range, settings: Settings, runtime: Runtime) -> None:
        super().__init__()
        self.dim = settings.model.dim
        self.tables = Tables(manifest, parts, settings, runtime)
        dims = {modality.name: modality.dim for modality in manifest.modalities}
        self.encoder = ItemEncoder.of(dims, settings.model, key(Stream.INIT, settings.train.seed)).to(runtime.device)

    def dense_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The replicated weights by name."""
        yield from self.encoder.named_parameters()

    def ego(self, inputs: Inputs) -> Ego:
        """Looks up users and encodes items."""
        looked_up, mixing, item_ids = self.tables(inputs.users, inputs.mixed, inputs.items, inputs.whole)
        channels, fused = self.encoder(inputs.features, inputs.curve)
        items = self._items(channels, fused, item_ids)
        return Ego(self._unit(looked_up), items, mixing, fused, looked_up)

    def propagate(self, ego: Ego, plan: StepPlan) -> tuple[Tensor, Tensor]:
        """Final rows of the batch's users and items, before L2 normalisation: [., C * d] each. Collective."""
        users, items = plan.inputs.propagation(ego.users, ego.items)
        users = users if plan.users is None else users.index_select(0, plan.users)
        return self.mix(users, ego.mixing), items if plan.items is None else items.index_select(0, plan.items)

    @torch.no_grad()
    def final_rows(
        self, features: ItemFeatures, parts_users: Tensor, parts_items: Tensor, propagation: Propagation
    ) -> tuple[Tensor, Tensor]:
        """Final rows of all local users and items for ranking: exact propagation, curve parameter 0.5. Collective."""
        users, items, mixing = self.ego_rows(features, parts_users, parts_items)
        # A few columns at a time, in place: the operator takes columns apart, and the rows of other ranks, which can be
        # most of the graph's, are then never here in all their width.
        for begin in range(0, users.shape[1], FINAL_COLUMNS):
            columns = slice(begin, begin + FINAL_COLUMNS)
            parts = users[:, columns].contiguous(), items[:, columns].contiguous()
            users[:, columns], items[:, columns] = propagation(*parts)
        for some in torch.arange(len(users)).split(ENCODE_BLOCK):
            block = slice(int(some[0]), int(some[-1]) + 1)
            users[block] = self.mix(users[block], mixing[block])
        return users, items

    @torch.no_grad()
    def ego_rows(
        self, features: ItemFeatures, parts_users: Tensor, parts_items: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of all local users and items before propagation, [., C * d] of unit channels, and the mixing logits."""
        looked_up, mixing, item_ids = self.tables(parts_users, parts_users, parts_items, True)
        # Blocks that wait to be joined would be as much again, of a size that glibc keeps when they are freed.
        items = looked_up.new_empty(features.rows, looked_up.shape[1])
        for rows in torch.arange(features.rows).split(ENCODE_BLOCK):
            ids = None if item_ids is None else item_ids[rows.to(looked_up.device)]
            block = slice(int(rows[0]), int(rows[-1]) + 1)
            items[block] = self.encode(features.gather(rows.numpy()), looked_up.device, ids)
        return self._unit(looked_up), items, mixing

    @torch.no_grad()
    def encode(self, features: dict[str, Tensor], device: torch.device, item_ids: Tensor | None = None) -> Tensor:
        """Ego rows [n, C * d] of items for ranking, from features modality -> [n, d_m]: curve parameter 0.5."""
        on_device = {name: values.to(device) for name, values in features.items()}
        count = len(next(iter(features.values())))
        channels, fused = self.encoder(on_device, torch.full((count,), 0.5, device=device))
        return self._items(channels, fused, item_ids)

    def _items(self, channels: list[Tensor], fused: Tensor, item_ids: Tensor | None) -> Tensor:
        blocks = [*channels, fused if item_ids is None else fused + item_ids]
        return self._unit(torch.cat(blocks, dim=1))

    def _unit(self, rows: Tensor) -> Tensor:
        """L2-normalises every channel."""
        return l2_normalize(rows, self.dim)

    def mix(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Multiplies every channel of user rows [n, C * d] by its share, the softmax of `logits` [n, C]."""
        weights = torch.softmax(logits, dim=1).unsqueeze(-1)
        return (rows.view(len(rows), -1, self.dim) * weights).view(len(rows), -1)
