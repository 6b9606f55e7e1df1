"""Embeddings for ranking, computed without gradients; shared by training's evaluation and by inference.

Shapes: n users and m items of this rank, M modalities of widths d_m, C = M + 1 channels of width d, the fused one last.
Before propagation each channel of an embedding has norm 1; user channels are mixed after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.model.item_encoder import ItemEncoder
from cm3_dist.model.l2_normalize import l2_normalize
from cm3_dist.pipeline.item_features import ItemFeatures

ROWS_PER_BLOCK = 65_536  # encoded, normalised or mixed at a time
FINAL_COLUMNS = 16  # propagated at a time: one cache line per row


def join_channels(channels: list[Tensor], fused: Tensor, item_ids: Tensor | None) -> Tensor:
    """M channels [m, d], fused rows [m, d] and item-id rows [m, d] or None -> [m, C * d] of unit channels."""
    blocks = [*channels, fused if item_ids is None else fused + item_ids]
    return l2_normalize(torch.cat(blocks, dim=1), fused.shape[1])


def mix_channels(rows: Tensor, logits: Tensor) -> Tensor:
    """Multiplies each channel of user rows [n, C * d] by its share, the softmax of `logits` [n, C]."""
    weights = torch.softmax(logits, dim=1).unsqueeze(-1)
    return (rows.view(len(rows), logits.shape[1], -1) * weights).view(len(rows), -1)


@torch.no_grad()
def encode_items(
    encoder: ItemEncoder,
    features: Mapping[str, Tensor],
    missing: Mapping[str, Tensor],
    item_ids: Tensor | None = None,
) -> Tensor:
    """Encodes items for ranking: curve parameter 0.5.

    Args:
        encoder: of the items.
        features: modality -> [m, d_m], on any device.
        missing: modality -> [m] bool: the items that lack it, on any device; see `ItemEncoder.forward`.
        item_ids: [m, d], if the model has them.

    Returns:
        [m, C * d] before propagation.
    """
    device = next(encoder.parameters()).device
    on_device = {name: values.to(device) for name, values in features.items()}
    masks = {name: mask.to(device) for name, mask in missing.items()}
    count = len(next(iter(features.values())))
    channels, fused = encoder(on_device, torch.full((count,), 0.5, device=device), masks)
    return join_channels(channels, fused, item_ids)


@torch.no_grad()
def encode_all_items(encoder: ItemEncoder, features: ItemFeatures, item_ids: Tensor | None, out: Tensor) -> None:
    """Fills `out` [m, C * d] with all items of this rank before propagation; `item_ids` [m, d] or None."""
    # Results are written in place: blocks that wait to be joined would take as much memory again.
    for block in _blocks(features.rows):
        ids = None if item_ids is None else item_ids[block]
        rows = torch.arange(block.start, block.stop).numpy()
        out[block] = encode_items(encoder, features.gather(rows), features.missing(rows), ids)


@torch.no_grad()
def propagate_all(users: Tensor, items: Tensor, mixing: Tensor, propagation: Propagation) -> None:
    """Turns embeddings before propagation, users [n, C * d] and items [m, C * d], into final ones in place. Collective.

    `mixing` [n, C]: the users' logits. Only a few columns are propagated at a time, so that the rows of other ranks,
    which can be most of the graph's, are never here in their whole width.
    """
    for begin in range(0, users.shape[1], FINAL_COLUMNS):
        columns = slice(begin, begin + FINAL_COLUMNS)
        blocks = users[:, columns].contiguous(), items[:, columns].contiguous()
        users[:, columns], items[:, columns] = propagation(*blocks)
    for block in _blocks(len(users)):
        users[block] = mix_channels(users[block], mixing[block])


def normalize_channels_(rows: Tensor, dim: int) -> Tensor:
    """L2-normalises each channel of `rows` [n, C * d] in place, `dim` = d; returns `rows`."""
    for block in _blocks(len(rows)):
        rows[block] = l2_normalize(rows[block], dim)
    return rows


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(begin, min(begin + ROWS_PER_BLOCK, rows)) for begin in range(0, rows, ROWS_PER_BLOCK))
