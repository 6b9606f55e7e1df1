"""How wide the model's rows are, and how many weights are replicated: shared by the model and the capacity planner."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cm3_dist.config.settings import Settings
from cm3_dist.model.item_encoder import ItemEncoder
from partition.folder.manifest import Manifest

CHANNELS, MIXING, ITEM_IDS = "user_channels", "user_mixing", "item_ids"


@dataclass(frozen=True)
class Widths:
    """Floats a row. C = modalities + 1 channels of width d."""

    channels: int  # C
    dim: int  # d

    @staticmethod
    def of(manifest: Manifest, settings: Settings) -> Widths:
        """For these modalities and settings."""
        return Widths(len(manifest.modalities) + 1, settings.model.dim)

    @property
    def row(self) -> int:
        """C * d: what is propagated, fetched and ranked with."""
        return self.channels * self.dim

    @property
    def mixing(self) -> int:
        """C logits; TorchRec wants a multiple of 4, the rest stays unused."""
        return -(-self.channels // 4) * 4


def tables(manifest: Manifest, settings: Settings) -> dict[str, tuple[int, int]]:
    """Rows and width of every sharded table. Those of a TorchRec collection have one width: one collection each."""
    widths = Widths.of(manifest, settings)
    shapes = {CHANNELS: (manifest.user_rows, widths.row), MIXING: (manifest.user_rows, widths.mixing)}
    if settings.model.item_ids:
        shapes[ITEM_IDS] = (manifest.item_rows, widths.dim)
    return shapes


def dense_weights(manifest: Manifest, settings: Settings) -> int:
    """Number of replicated weights: the item encoder's."""
    dims = {modality.name: modality.dim for modality in manifest.modalities}
    with torch.device("meta"):
        encoder = ItemEncoder.of(dims, settings.model, seed=0)
    return sum(parameter.numel() for parameter in encoder.parameters())
