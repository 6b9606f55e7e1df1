"""A prepared folder as research code holds it: whole arrays in one process, users and items numbered from 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cm3_dist.graph.shard import Adjacency, HeldOut, load_shard
from cm3_dist.pipeline.item_features import ItemFeatures
from partition.errors import InputError


@dataclass(frozen=True)
class PlainData:
    """Everything at once. `user_rows` [U] and `item_rows` [I]: the row of a user or item in the prepared folder."""

    user_rows: np.ndarray
    item_rows: np.ndarray
    train: np.ndarray  # [E, 2] int64: user, item
    held_out: dict[str, dict[int, list[int]]]  # "validation", "test": user -> items
    features: list[Tensor]  # M x [I, d_m] float32
    similar: Tensor  # [I, I] sparse COO: the item graph

    @property
    def users(self) -> int:
        """U."""
        return len(self.user_rows)

    @property
    def items(self) -> int:
        """I."""
        return len(self.item_rows)


def load_plain(prepared: Path) -> PlainData:
    """Reads a prepared folder whole, padding left out.

    Raises:
        InputError: a missing or torn file, by name; `benchmark.weighted`, the interactions have weights, which the
            plain program does not know.
    """
    shard = load_shard(prepared, 0, 1)
    manifest = shard.manifest
    if manifest.weighted:
        message = "its interactions are weighted, and the plain program trains without weights; prepare them without"
        raise InputError(f"{prepared}: {message}", "benchmark.weighted")
    sizes = [(part.users, part.items) for part in manifest.parts]
    user_rows = np.concatenate([p * manifest.user_stride + np.arange(u) for p, (u, _) in enumerate(sizes)])
    item_rows = np.concatenate([p * manifest.item_stride + np.arange(i) for p, (_, i) in enumerate(sizes)])
    user_of, item_of = _places(user_rows, manifest.user_rows), _places(item_rows, manifest.item_rows)
    features = ItemFeatures(prepared, manifest, shard.parts).gather(item_rows)
    destination, source, value = _triples(shard.similar)
    similar = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([item_of[destination], item_of[source]])),
        torch.from_numpy(value),
        (len(item_rows), len(item_rows)),
        check_invariants=True,
    ).coalesce()
    user, item, _ = _triples(shard.user_from_item)
    return PlainData(
        user_rows,
        item_rows,
        np.stack([user_of[user], item_of[item]], axis=1),
        {split: _lists(held_out, user_of, item_of) for split, held_out in shard.held_out.items()},
        [values.float() for values in features.values()],
        similar,
    )


def _places(rows: np.ndarray, size: int) -> np.ndarray:
    places = np.full(size, -1, np.int64)
    places[rows] = np.arange(len(rows))
    return places


def _triples(edges: Adjacency) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.repeat(np.arange(len(edges.indptr) - 1), np.diff(edges.indptr)), edges.source, edges.value


def _lists(held_out: HeldOut, user_of: np.ndarray, item_of: np.ndarray) -> dict[int, list[int]]:
    bounds, values = held_out.relevant.indptr.tolist(), item_of[held_out.relevant.values.numpy()].tolist()
    return {
        int(user_of[row]): values[low:high] for row, low, high in zip(held_out.users, bounds, bounds[1:], strict=False)
    }
