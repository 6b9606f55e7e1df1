"""A cleaned, split data set: what the readers produce and the part writer consumes. Its columns may lie in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from partition import columns_on_disk as blocks

TRAIN, VALIDATION, TEST = 0, 1, 2
SPECTRAL = "spectral"  # name of the modality that is made of training interactions, see partition.transform.spectral
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
    user: np.ndarray  # [E] int32 or int64; pairs are unique and sorted by (user, item)
    item: np.ndarray  # [E] likewise
    split: np.ndarray  # [E] int8: TRAIN, VALIDATION, TEST
    split_method: SplitMethod
    features: dict[str, Features]  # in the order of the curve's control points
    counts: dict[str, int] = field(default_factory=dict)  # dropped or merged, by reason
    inputs: dict[str, str] = field(default_factory=dict)  # input file name -> sha256

    def train(self, folder: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
        """User and item index of the training interactions, in files in `folder` (see `partition.columns_on_disk`)."""
        user, item = blocks.select((self.user, self.item), lambda rows: self.split[rows] == TRAIN, folder)
        return user, item


@dataclass(frozen=True)
class Interactions:
    """Interactions by user and item index, before they are split."""

    user: np.ndarray  # [E] int32 or int64
    item: np.ndarray  # [E] likewise
    split: np.ndarray | None = None  # [E] int8, where the input says it
    time: np.ndarray | None = None  # [E] int64 or float64, in whatever unit the input has

    def __len__(self) -> int:
        return len(self.user)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Those that are there, by name."""
        columns = {"user": self.user, "item": self.item, "split": self.split, "time": self.time}
        return {name: values for name, values in columns.items() if values is not None}

    def select(self, keep: Callable[[slice], np.ndarray], folder: Path | None) -> Interactions:
        """Those of the rows that stay, in files in `folder`; `keep` gives the mask of a block of rows."""
        columns = self.columns
        return Interactions(**dict(zip(columns, blocks.select(list(columns.values()), keep, folder), strict=True)))
