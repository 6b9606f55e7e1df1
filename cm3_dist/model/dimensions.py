"""Widths of the model's rows and number of replicated weights, used by the model and the capacity planner."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cm3_dist.config.settings import Settings
from cm3_dist.model.item_encoder import ItemEncoder
from partition.folder.manifest import Manifest

CHANNELS, MIXING, ITEM_IDS = "user_channels", "user_mixing", "item_ids"


@dataclass(frozen=True)
class Dimensions:
    """Floats per row: C = modalities + 1 channels of width d."""

    channels: int  # C
    dim: int  # d

    @staticmethod
    def of(manifest: Manifest, settings: Settings) -> Dimensions:
        """The widths for the modalities of `manifest` and these settings."""
        return Dimensions(len(manifest.modalities) + 1, settings.model.dim)

    @property
    def row(self) -> int:
        """C * d: the width of the rows that are propagated, fetched and used for ranking."""
        return self.channels * self.dim

    @property
    def mixing(self) -> int:
        """C logits, rounded up to a multiple of 4 as TorchRec requires; the rest is unused."""
        return -(-self.channels // 4) * 4


def tables(manifest: Manifest, settings: Settings) -> dict[str, tuple[int, int]]:
    """Every sharded table: name -> (rows over all ranks, width). A TorchRec collection has one width, so one each."""
    widths = Dimensions.of(manifest, settings)
    shapes = {CHANNELS: (manifest.user_rows, widths.row), MIXING: (manifest.user_rows, widths.mixing)}
    if settings.model.item_ids:
        shapes[ITEM_IDS] = (manifest.item_rows, widths.dim)
    return shapes


def dense_weights(manifest: Manifest, settings: Settings) -> int:
    """Number of replicated weights, those of the item encoder."""
    dims = {modality.name: modality.dim for modality in manifest.modalities}
    with torch.device("meta"):
        encoder = ItemEncoder.of(dims, settings.model, seed=0)
    return sum(parameter.numel() for parameter in encoder.parameters())
