"""phi, the similarity by which item uniformity is calibrated: whose it is, how far it is trusted, what it trains."""

from __future__ import annotations

import math

from torch import Tensor

from cm3_dist.config.settings import Loss
from cm3_dist.errors import InputError
from partition.folder.manifest import Manifest


def trust(settings: Loss, manifest: Manifest) -> float:
    """What phi is multiplied by: 1, or with `loss.phi=reliable` the reliability that preparation measured.

    Raises:
        InputError: the data were prepared before it was measured.
    """
    if settings.phi == "similarity":
        return 1.0
    if "reliability" not in manifest.statistics:
        raise InputError(
            f"{manifest.name}: loss.phi=reliable: the manifest's statistics lack 'reliability'; prepare the data again"
        )
    return manifest.statistics["reliability"]


def calibrating(fused: Tensor, settings: Loss, reliability: float) -> tuple[Tensor | None, tuple[float, float]]:
    """What `uniformity` takes for phi: rows, and bounds within which their inner product is phi.

    reliability * clamp(s_i . s_j, low, high) is the product of rows scaled by its root, within bounds scaled alike. At
    reliability 0 every phi is the same, which is plain uniformity: no rows then.
    """
    bounds = settings.min_sim * reliability, settings.max_sim * reliability
    if settings.item_uniformity == "plain" or not reliability:
        return None, bounds
    rows = fused if settings.phi_gradient else fused.detach()
    return rows if reliability == 1 else rows * math.sqrt(reliability), bounds
