"""The sizes that memory and traffic follow from: what a rank holds, and what a step of it touches.

Counted in a prepared folder (`counted`) or expected from numbers alone (`expected`), hence floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Halo:
    """Rows that a rank exchanges for one relation: remote ones that arrive, and own ones that others ask for."""

    received: float
    sent: float


@dataclass(frozen=True)
class Relation:
    """Rows that are computed from their neighbours: how many, over how many edges, with which remote sources."""

    rows: float
    edges: float
    halo: Halo


@dataclass(frozen=True)
class RankLoad:
    """What one rank holds of the graph."""

    parts: int
    user_rows: int  # padding included
    item_rows: int
    users: float
    items: float
    user_from_item: Relation  # over all training edges
    item_from_user: Relation
    similar: Relation  # the item graph
    part_nodes: float  # node numbers in the parts' files, halo included: of both relations and of the item graph
    largest_part: float  # the share that the largest of its parts has in its edges
    held_out: dict[str, tuple[float, float]]  # split -> users, interactions


@dataclass(frozen=True)
class RankStep:
    """What one step touches on one rank."""

    positives: float
    users: float  # distinct in its share of the batch
    items: float  # its items that any rank asked for
    asked: float  # distinct items of its share of the batch that other ranks own
    user_from_item: Sequence[Relation]  # layers, nearest first
    item_from_user: Sequence[Relation]
    similar: Sequence[Relation]
    input_users: float  # whose ego rows enter
    input_items: float
    positive_halo: Halo
    most_users: float  # largest number of distinct users of any rank, which the loss pads to
    most_items: float  # likewise of the items that repel each other
