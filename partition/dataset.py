"""A cleaned, split data set in memory: what the readers produce and the part writer consumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

TRAIN, VALIDATION, TEST = 0, 1, 2
SPECTRAL = "spectral"  # name of the modality that is made of training interactions, see partition.spectral
SplitMethod = Literal["column", "random", "leave_last_out", "cold_items"]


@dataclass(frozen=True)
class Features:
    """One modality's matrix; may be memory-mapped."""

    values: np.ndarray  # [items, d], float16, 32 or 64 as it came
    source_dim: int  # d before PCA
    basis: np.ndarray | None = None  # [source_dim, d] float64: what PCA multiplied the rows by; may be memory-mapped


@dataclass(frozen=True)
class Dataset:
    """Interactions by user and item index, with the ids those indices stand for.

    At least one interaction is in the training split; held-out interactions of users without a training interaction
    have been dropped and counted.
    """

    name: str
    user_ids: pa.Array  # [users] int64 or string
    item_ids: pa.Array  # [items] likewise
    user: np.ndarray  # [E] int64   pairs are unique and sorted by (user, item)
    item: np.ndarray  # [E] int64
    split: np.ndarray  # [E] int8: TRAIN, VALIDATION, TEST
    split_method: SplitMethod
    features: dict[str, Features]  # in the order of the curve's control points
    counts: dict[str, int] = field(default_factory=dict)  # dropped or merged, by reason
    inputs: dict[str, str] = field(default_factory=dict)  # input file name -> sha256

    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """User and item index of the training interactions."""
        kept = self.split == TRAIN
        return self.user[kept], self.item[kept]


@dataclass(frozen=True)
class Interactions:
    """Interactions by user and item index, before they are split."""

    user: np.ndarray  # [E] int64
    item: np.ndarray  # [E] int64
    split: np.ndarray | None = None  # [E] int8, where the input says it
    time: np.ndarray | None = None  # [E] int64 or float64, in whatever unit the input has

    def __len__(self) -> int:
        return len(self.user)

    def take(self, chosen: np.ndarray) -> Interactions:
        """Some of them: a boolean mask [E] or positions."""
        split, time = (None if column is None else column[chosen] for column in (self.split, self.time))
        return Interactions(self.user[chosen], self.item[chosen], split, time)
