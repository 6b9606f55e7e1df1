"""What is asked: data, settings and hardware of one run, and the sizes that its memory, traffic and time follow from.

Sizes are counted in a prepared folder (`from_folder`) or expected from numbers alone (`from_numbers`), hence floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cm3_dist.capacity.hardware import Hardware
from cm3_dist.config.settings import Propagation, Settings
from cm3_dist.graph.propagation_mode import resolve_mode
from cm3_dist.model.dimensions import Dimensions
from partition.folder.manifest import Manifest


@dataclass(frozen=True)
class Degrees:
    """A distribution of training degrees: `nodes` [n] have `degree` [n] each."""

    degree: np.ndarray
    nodes: np.ndarray

    @property
    def edges(self) -> float:
        """Training interactions."""
        return float(self.degree @ self.nodes)

    def distinct(self, draws: float, share: float = 1.0, uniform: float = 0.0) -> float:
        """Nodes reached by `draws` edges that lead into a random `share` of the nodes, and by `uniform` node draws."""
        rate = self.degree * draws / self.edges + uniform / self.nodes.sum()
        return float(share * (self.nodes @ -np.expm1(-rate / share))) if share > 0 else 0.0


@dataclass(frozen=True)
class Halo:
    """Rows that a rank exchanges for one relation: remote rows received, and own rows sent."""

    received: float
    sent: float


@dataclass(frozen=True)
class Relation:
    """Rows that are computed from their neighbours: number of rows, edges, and the halo of remote sources."""

    rows: float
    edges: float
    halo: Halo


@dataclass(frozen=True)
class RankLoad:
    """What one rank holds of the graph."""

    parts: int
    user_rows: int  # including padding
    item_rows: int
    users: float
    items: float
    user_from_item: Relation  # over all training edges
    item_from_user: Relation
    similar: Relation  # the item graph
    part_nodes: float  # nodes in the parts' files, halo included, of both relations and of the item graph
    held_out: dict[str, tuple[float, float]]  # split -> users, interactions

    @property
    def relations(self) -> tuple[Relation, Relation, Relation]:
        """Both user-item relations and the item graph."""
        return self.user_from_item, self.item_from_user, self.similar


@dataclass(frozen=True)
class Layers:
    """The propagation of one step on one rank."""

    user_from_item: Sequence[Relation]  # nearest layer first
    item_from_user: Sequence[Relation]
    similar: Sequence[Relation]
    input_users: float  # rows that enter
    input_items: float

    @property
    def relations(self) -> list[Relation]:
        """All layers."""
        return [*self.user_from_item, *self.item_from_user, *self.similar]


@dataclass(frozen=True)
class RankStep(Layers):
    """What one step touches on one rank."""

    positives: float
    users: float  # unique users of its share of the batch
    items: float  # own items that any rank requested
    requested: float  # unique items of its share of the batch that other ranks own
    positive_halo: Halo
    most_users: float  # largest number of unique users of any rank, which the loss pads to
    most_items: float  # the same for the items of the uniformity term


def exact_layers(
    options: Propagation, load: RankLoad, users: tuple[float, float], items: tuple[float, float]
) -> Layers:
    """Exact propagation: all rows of all layers but the nearest; of that the batch's, given as (rows, edges)."""
    layers, similar_layers = options.user_item_layers, options.item_item_layers
    to_user, similar = load.user_from_item, load.similar
    return Layers(
        user_from_item=[Relation(*users, to_user.halo), *[to_user] * (layers - 1)][:layers],
        item_from_user=[load.item_from_user] * layers,
        similar=[Relation(*items, similar.halo), *[similar] * (similar_layers - 1)][:similar_layers],
        input_users=load.user_rows,
        input_items=load.item_rows,
    )


@dataclass(frozen=True)
class Scenario:
    """One run."""

    manifest: Manifest
    settings: Settings
    hardware: Hardware
    inside: float  # share of the interactions with both ends on one rank
    neighbours: float  # edges per item in the item graph
    users: Degrees
    items: Degrees
    root: Path | None = None  # prepared folder
    loads: tuple[RankLoad, ...] = ()  # counted in it

    @property
    def mode(self) -> str:
        """`exact` or `sampled`."""
        return resolve_mode(self.settings, self.manifest)

    @property
    def ranks(self) -> int:
        """Number of processes."""
        return self.hardware.ranks

    @property
    def widths(self) -> Dimensions:
        """Row widths of the model."""
        return Dimensions.of(self.manifest, self.settings)

    def feature_bytes(self, rows: float) -> float:
        """Features of so many items, as stored, with the masks of those that are missing."""
        modalities = self.manifest.modalities
        widths = (modality.dim * np.dtype(modality.dtype).itemsize + modality.masked for modality in modalities)
        return rows * sum(widths)

    def changed(self, **changes: Any) -> Scenario:
        """With other fields; everything expected, nothing counted."""
        return replace(self, **changes, loads=())

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        manifest = self.manifest
        counts = {name: getattr(manifest, name) for name in ("name", "users", "items", "train", "validation", "test")}
        modalities = [modality.model_dump() for modality in manifest.modalities]
        data = {**counts, "modalities": modalities, "inside": self.inside, "item_neighbours": self.neighbours}
        return {"data": data, "settings": self.settings.plain()}
