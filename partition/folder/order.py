"""The order in which preparation numbered users and items: files of a folder where it is not that of the ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from partition.errors import reading, require
from partition.folder import layout
from partition.folder.manifest import Manifest


def read_order(root: Path, manifest: Manifest, kind: str) -> np.ndarray | None:
    """Returns the rows [nodes] int64 of the users or items by number; None if that is the ascending order of their ids.

    Raises:
        InputError: `file.missing` or `file.unreadable`; `prepared.order`, it does not have each row of a node once.
    """
    path = root / layout.order_file(kind)
    if path.name not in manifest.digests:
        return None
    with reading(path, ".npy"):
        order = np.load(path, allow_pickle=False)
    rows = node_rows(manifest, kind)
    right = isinstance(order, np.ndarray) and order.dtype == np.int64 and np.array_equal(np.sort(order), rows)
    require(right, path, f"expected the row of every {kind} once, as int64", "prepared.order")
    return order


def node_rows(manifest: Manifest, kind: str) -> np.ndarray:
    """Returns the rows of all users or items [nodes] int64, ascending, without padding."""
    sizes = [part.users if kind == "user" else part.items for part in manifest.parts]
    return np.concatenate([number * stride(manifest, kind) + np.arange(size) for number, size in enumerate(sizes)])


def stride(manifest: Manifest, kind: str) -> int:
    """Returns the rows per part, padding included."""
    return manifest.user_stride if kind == "user" else manifest.item_stride
