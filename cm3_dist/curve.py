"""The random curve parameter of every item and step."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from cm3_dist.runtime import uniform_by_row


class Curve:
    """Curve parameters from Beta(alpha, alpha), one per item row and step, by inverting a tabulated quantile function.

    The table's midpoints of 2^16 equal bins are exact; in between it is linear.
    """

    def __init__(self, alpha: float, bins: int = 1 << 16) -> None:
        self._grid = (np.arange(bins) + 0.5) / bins
        half = betaincinv(alpha, alpha, self._grid[: bins // 2])
        self._quantile = np.concatenate([half, 1 - half[::-1]])  # the distribution is symmetric

    def __call__(self, seed: int, rows: np.ndarray) -> Tensor:
        """[n] int64 global rows -> [n] float32 in [0, 1]."""
        return torch.from_numpy(np.interp(uniform_by_row(seed, rows), self._grid, self._quantile).astype(np.float32))
