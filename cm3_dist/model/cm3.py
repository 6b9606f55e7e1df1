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
from cm3_dist.model.embedding_tables import EmbeddingTables
from cm3_dist.model.final_rows import encode_all_items, join_channels, mix_channels, propagate_all
from cm3_dist.model.item_encoder import ItemEncoder
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.pipeline.item_features import ItemFeatures
from cm3_dist.pipeline.step_plan import Inputs, StepPlan
from partition.folder.manifest import Manifest


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
        self.tables = EmbeddingTables(manifest, parts, settings, runtime)
        dims = {modality.name: modality.dim for modality in manifest.modalities}
        self.encoder = ItemEncoder.of(dims, settings.model, key(Stream.INIT, settings.train.seed)).to(runtime.device)

    def dense_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The replicated weights as (name, parameter) pairs."""
        yield from self.encoder.named_parameters()

    def ego(self, inputs: Inputs) -> Ego:
        """Looks up users and encodes items. Collective unless the local tables are used."""
        looked_up, mixing, item_ids = self.tables(inputs.users, inputs.mixed, inputs.items, inputs.whole)
        channels, fused = self.encoder(inputs.features, inputs.curve, inputs.missing)
        items = join_channels(channels, fused, item_ids)
        return Ego(l2_normalize(looked_up, self.dim), items, mixing, fused, looked_up)

    def propagate(self, ego: Ego, plan: StepPlan) -> tuple[Tensor, Tensor]:
        """Propagates. Collective.

        Returns:
            Final rows of the batch's users [b, C * d] and of the items of `plan.items` [., C * d], not normalised.
        """
        users, items = plan.inputs.propagation(ego.users, ego.items)
        users = users if plan.users is None else users.index_select(0, plan.users)
        return mix_channels(users, ego.mixing), items if plan.items is None else items.index_select(0, plan.items)

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
        looked_up, mixing, item_ids = self.tables(parts_users, parts_users, parts_items, True)
        items = looked_up.new_empty(features.rows, looked_up.shape[1])
        encode_all_items(self.encoder, features, item_ids, out=items)
        users = l2_normalize(looked_up, self.dim)
        propagate_all(users, items, mixing, propagation)
        return users, items
