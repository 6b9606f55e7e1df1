"""Random curve parameters, one per item and step."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from cm3_dist.distributed.seeding import uniform_by_row


class CurveParameter:
    """Draws curve parameters from Beta(alpha, alpha) by inverting a tabulated quantile function.

    Args:
        alpha: both parameters of the distribution.
        bins: size of the table, which is exact at the midpoints of equal bins and linear in between.
    """

    def __init__(self, alpha: float, bins: int = 1 << 16) -> None:
        half = betaincinv(alpha, alpha, (np.arange(bins // 2) + 0.5) / bins)
        self._quantile = np.concatenate([half, 1 - half[::-1]])  # the distribution is symmetric
        self._slope = np.append(np.diff(self._quantile), 0)

    def __call__(self, seed: int, rows: np.ndarray) -> Tensor:
        """Curve parameters of the global item rows `rows` ([n] int64), keyed by (seed, row): [n] float32 in [0, 1]."""
        # Bins are equal, so the index is computed; np.interp searches for it and takes ten times as long.
        place = np.clip(uniform_by_row(seed, rows) * len(self._quantile) - 0.5, 0, len(self._quantile) - 1)
        below = place.astype(np.int64)
        return torch.from_numpy((self._quantile[below] + (place - below) * self._slope[below]).astype(np.float32))
