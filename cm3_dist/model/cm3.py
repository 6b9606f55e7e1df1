"""CM3: sharded user tables and encoded items, propagated over both graphs (docs/model.md).

Shapes: n users and m items enter the propagation on this rank; b distinct users in the batch; M modalities;
C = M + 1 channels of width d, the fused one last; d_m features of modality m.
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

ENCODE_BLOCK = 65_536  # rows per block when encoding or mixing without gradients
FINAL_COLUMNS = 16  # columns propagated at a time: one cache line per row


@dataclass(frozen=True)
class Ego:
    """Rows before propagation."""

    users: Tensor  # [n, C * d], every channel of norm 1
    items: Tensor  # [m, C * d], every channel of norm 1
    mixing: Tensor  # [b, C] mixing logits of the batch's distinct users
    fused: Tensor  # [m, d] of norm 1
    looked_up: Tensor  # [n, C * d] rows of the user table; their gradient is the table's gradient


class CM3(nn.Module):
    """The model on one rank: its shard of the tables, and a replica of the item encoder."""

    def __init__(self, manifest: Manifest, parts: range, settings: Settings, runtime: Runtime) -> None:
        super().__init__()
        self.dim = settings.model.dim
        self.tables = Tables(manifest, parts, settings, runtime)
        dims = {modality.name: modality.dim for modality in manifest.modalities}
        self.encoder = ItemEncoder.of(dims, settings.model, key(Stream.INIT, settings.train.seed)).to(runtime.device)

    def dense_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The replicated weights as (name, parameter) pairs."""
        yield from self.encoder.named_parameters()

    def ego(self, inputs: Inputs) -> Ego:
        """Looks up users and encodes items. Collective unless the local tables are used."""
        looked_up, mixing, item_ids = self.tables(inputs.users, inputs.mixed, inputs.items, inputs.whole)
        channels, fused = self.encoder(inputs.features, inputs.curve)
        items = self._items(channels, fused, item_ids)
        return Ego(self._unit(looked_up), items, mixing, fused, looked_up)

    def propagate(self, ego: Ego, plan: StepPlan) -> tuple[Tensor, Tensor]:
        """Propagates. Collective.

        Returns:
            Final rows of the batch's users [b, C * d] and of the items of `plan.items` [., C * d], not normalised.
        """
        users, items = plan.inputs.propagation(ego.users, ego.items)
        users = users if plan.users is None else users.index_select(0, plan.users)
        return self.mix(users, ego.mixing), items if plan.items is None else items.index_select(0, plan.items)

    @torch.no_grad()
    def final_rows(
        self, features: ItemFeatures, parts_users: Tensor, parts_items: Tensor, propagation: Propagation
    ) -> tuple[Tensor, Tensor]:
        """Final rows of all local users and items for ranking: exact propagation, curve parameter 0.5. Collective.

        Args:
            features: of all local items.
            parts_users: [local users] int64 global rows.
            parts_items: [local items] int64 global rows.
            propagation: the exact operator.

        Returns:
            Users [local users, C * d] and items [local items, C * d].
        """
        users, items, mixing = self.ego_rows(features, parts_users, parts_items)
        # A few columns at a time, in place. Columns are independent, and the rows fetched from other ranks, which may
        # be most of the graph, are then never held in full width.
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
        """Rows of all local users and items before propagation. Arguments as in `final_rows`.

        Returns:
            Users [local users, C * d] and items [local items, C * d] with channels of norm 1, and the users' mixing
            logits [local users, C].
        """
        looked_up, mixing, item_ids = self.tables(parts_users, parts_users, parts_items, True)
        # Written in place: joining blocks would take twice the memory.
        items = looked_up.new_empty(features.rows, looked_up.shape[1])
        for rows in torch.arange(features.rows).split(ENCODE_BLOCK):
            ids = None if item_ids is None else item_ids[rows.to(looked_up.device)]
            block = slice(int(rows[0]), int(rows[-1]) + 1)
            items[block] = self.encode(features.gather(rows.numpy()), looked_up.device, ids)
        return self._unit(looked_up), items, mixing

    @torch.no_grad()
    def encode(self, features: dict[str, Tensor], device: torch.device, item_ids: Tensor | None = None) -> Tensor:
        """Encodes items for ranking, with curve parameter 0.5.

        Args:
            features: modality -> [m, d_m].
            device: of the result.
            item_ids: [m, d] item embeddings, or None.

        Returns:
            Rows before propagation, [m, C * d].
        """
        on_device = {name: values.to(device) for name, values in features.items()}
        count = len(next(iter(features.values())))
        channels, fused = self.encoder(on_device, torch.full((count,), 0.5, device=device))
        return self._items(channels, fused, item_ids)

    def _items(self, channels: list[Tensor], fused: Tensor, item_ids: Tensor | None) -> Tensor:
        blocks = [*channels, fused if item_ids is None else fused + item_ids]
        return self._unit(torch.cat(blocks, dim=1))

    def _unit(self, rows: Tensor) -> Tensor:
        """Scales every channel to norm 1."""
        return l2_normalize(rows, self.dim)

    def mix(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Multiplies every channel of user rows [n, C * d] by its weight, the softmax of `logits` [n, C]."""
        weights = torch.softmax(logits, dim=1).unsqueeze(-1)
        return (rows.view(len(rows), -1, self.dim) * weights).view(len(rows), -1)
