"""The cleaned, split data set that is cut into parts. Columns may be memory-mapped files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from partition import columns_on_disk as blocks
from partition.options import RecordedSplit

TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class Features:
    """The matrix of one modality; may be memory-mapped."""

    values: np.ndarray  # [items, d], float16, float32 or float64, as in the input
    source_dim: int  # d before PCA
    basis: np.ndarray | None = None  # [source_dim, d] float64, by which PCA multiplied the rows; may be memory-mapped
    missing: np.ndarray | None = None  # [items] bool: the row is zeros, and fusion leaves it out (--missing mask)


@dataclass(frozen=True)
class Dataset:
    """Interactions by user and item index, with the external ids and the features.

    At least one interaction is in the training split. Held-out interactions of users without a training interaction
    are dropped and counted.
    """

    name: str
    user_ids: pa.Array  # [users] int64 or large_string
    item_ids: pa.Array  # [items] int64 or large_string
    user: np.ndarray  # [E] int32 or int64; pairs are unique and sorted by (user, item)
    item: np.ndarray  # [E] int32 or int64
    split: np.ndarray  # [E] int8: TRAIN, VALIDATION, TEST
    split_method: RecordedSplit
    features: dict[str, Features]  # in the order of the control points of the curve
    weight: np.ndarray | None = None  # [E] float32 above 0; None: every interaction weighs 1
    counts: dict[str, int] = field(default_factory=dict)  # dropped or merged, by reason
    inputs: dict[str, str] = field(default_factory=dict)  # input file name -> sha256

    @property
    def missing(self) -> dict[str, np.ndarray]:
        """Modality -> [items] bool, of those that some items lack (`Features.missing`)."""
        return {name: found.missing for name, found in self.features.items() if found.missing is not None}

    def train(self, folder: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
        """[n] user and item index of the training interactions, in files in `folder` (`partition.columns_on_disk`)."""
        user, item = blocks.select((self.user, self.item), lambda rows: self.split[rows] == TRAIN, folder)
        return user, item
