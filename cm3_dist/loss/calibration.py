"""phi, the similarity that calibrates item uniformity: which rows it compares, its scale, and its gradient.

Training drives phi to 1 unless its gradient is switched off (docs/model.md). Shapes: k items of width d.
"""

from __future__ import annotations

import math

from torch import Tensor

from cm3_dist.config.settings import Loss
from cm3_dist.errors import InputError
from partition.folder.manifest import Manifest


def trust(settings: Loss, manifest: Manifest) -> float:
    """The factor of phi: 1, or with `loss.phi=reliable` the features' reliability measured in preparation, in [0, 1].

    Raises:
        InputError: the prepared folder has no reliability, because it was made by an earlier version.
    """
    if settings.phi == "similarity":
        return 1.0
    if "reliability" not in manifest.statistics:
        raise InputError(
            f"{manifest.name}: loss.phi=reliable: the manifest's statistics lack 'reliability'; prepare the data again",
            "data.no-reliability",
        )
    return manifest.statistics["reliability"]


def calibrating(fused: Tensor, settings: Loss, reliability: float) -> tuple[Tensor | None, tuple[float, float]]:
    """The arguments of `uniformity` that define phi = reliability * clamp(s_i . s_j, min_sim, max_sim).

    Args:
        fused: [k, d] fused rows s of norm 1.
        settings: of the loss.
        reliability: from `trust`.

    Returns:
        Rows whose inner product, clamped to the returned bounds, is phi: `fused` times the root of the reliability.
        None instead of rows means plain uniformity, also at reliability 0, where phi is constant.
    """
    bounds = settings.min_sim * reliability, settings.max_sim * reliability
    if settings.item_uniformity == "plain" or not reliability:
        return None, bounds
    rows = fused if settings.phi_gradient else fused.detach()
    return rows if reliability == 1 else rows * math.sqrt(reliability), bounds
