"""Which part every user and item belongs to: DGL's METIS on the training graph, or at random."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from partition.errors import InputError

os.environ.setdefault("DGLBACKEND", "pytorch")  # else the import of dgl writes a file into the home folder
import dgl


@dataclass(frozen=True)
class Assignment:
    """Part of every node."""

    user_part: np.ndarray  # [users] int32
    item_part: np.ndarray  # [items] int32


def assign_parts(
    user: np.ndarray,
    item: np.ndarray,
    users: int,
    items: int,
    parts: int,
    method: Literal["metis", "random"] = "metis",
    seed: int = 0,
) -> Assignment:
    """Cuts the training graph into `parts` of nearly equal numbers of users and of items.

    METIS balances users and items separately (`balance_ntypes`); it is deterministic, and `seed` only serves `random`.
    Nodes without a training interaction fill up the smallest parts.

    Raises:
        InputError: more parts than users or items, or a part left empty.
    """
    if parts > min(users, items):
        kind, count = ("users", users) if users < items else ("items", items)
        raise InputError(f"--parts {parts}: more parts than {kind} ({count}); use --parts {count} or fewer")
    rng = np.random.default_rng(seed)
    if parts == 1:
        return Assignment(np.zeros(users, np.int32), np.zeros(items, np.int32))
    if method == "random":
        return Assignment(_evenly(users, parts, rng), _evenly(items, parts, rng))
    graph = dgl.graph(
        (
            torch.from_numpy(np.concatenate([user, item + users])),
            torch.from_numpy(np.concatenate([item + users, user])),
        ),
        num_nodes=users + items,
    )
    kinds = torch.cat([torch.zeros(users, dtype=torch.int64), torch.ones(items, dtype=torch.int64)])
    part = dgl.metis_partition_assignment(graph, parts, balance_ntypes=kinds).numpy().astype(np.int32)
    result = Assignment(
        _spread(part[:users], np.bincount(user, minlength=users) == 0, parts),
        _spread(part[users:], np.bincount(item, minlength=items) == 0, parts),
    )
    for kind, column in (("user", result.user_part), ("item", result.item_part)):
        sizes = np.bincount(column, minlength=parts)
        if sizes.min() == 0:
            raise InputError(
                f"--parts {parts}: METIS left part {sizes.argmin()} without a {kind}; use fewer, or --method random"
            )
    return result


def _evenly(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    part = np.arange(count, dtype=np.int32) % parts
    return rng.permutation(part)


def _spread(part: np.ndarray, idle: np.ndarray, parts: int) -> np.ndarray:
    """Moves the `idle` nodes to where they level the sizes: the smallest part is filled first."""
    part = part.copy()
    sizes = np.bincount(part[~idle], minlength=parts)
    room = np.maximum(-(-len(part) // parts) - sizes, 0)
    slots = np.repeat(np.arange(parts, dtype=np.int32), room)
    extra = np.arange(max(int(idle.sum()) - len(slots), 0), dtype=np.int32) % parts
    part[idle] = np.concatenate([slots, extra])[: int(idle.sum())]
    return part
