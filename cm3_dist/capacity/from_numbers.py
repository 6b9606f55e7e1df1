"""Sizes expected from numbers alone, where there is no prepared folder, or none small enough to draw steps from.

Assumptions: ranks are alike; a share `inside` of the interactions joins nodes of one rank, as the cut leaves it; apart
from that an edge meets a node in proportion to its degree, independently of others (a random graph with these degrees),
so that n edges meet sum_v 1 - (1 - degree_v / E)^n distinct nodes. Degrees are those of the folder, or power laws like
Amazon Baby's. Tastes that gather users around the same items make real frontiers and halos smaller than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cm3_dist.capacity.sizes import Halo, RankLoad, RankStep, Relation
from cm3_dist.config.settings import Settings
from cm3_dist.graph.neighbor_sampling import Fanouts
from cm3_dist.graph.shard import column
from partition.folder import layout
from partition.folder.manifest import SCHEMA_VERSION, Manifest, Modality, Part

PADDING = 1.03  # rows of the row space per node, METIS
TRAIN = 0.8
# Degree of the node of rank r among n: proportional to (r + offset n)^-exponent; fitted to Amazon Baby.
USER_LAW, ITEM_LAW = (0.55, 0.005), (0.85, 0.008)
MODALITY_OVERLAP = 0.9  # neighbours of two modalities that differ


@dataclass(frozen=True)
class Degrees:
    """A distribution of training degrees: `nodes` [n] have `degree` [n] each."""

    degree: np.ndarray
    nodes: np.ndarray

    @staticmethod
    def power_law(nodes: int, edges: int, law: tuple[float, float], buckets: int = 400) -> Degrees:
        """`nodes` nodes with `edges` edges in all."""
        cuts = np.unique(np.geomspace(1, nodes + 1, buckets).astype(np.int64)) - 1
        count = np.diff(cuts).astype(float)
        weight = ((cuts[:-1] + cuts[1:]) / 2 / nodes + law[1]) ** -law[0]
        return Degrees(weight * edges / (weight * count).sum(), count)

    @staticmethod
    def of(root: Path, manifest: Manifest, file: str) -> Degrees:
        """Those of a prepared folder's users or items."""
        found = [column(layout.part_dir(root, part) / file, "train_degree") for part in range(manifest.num_parts)]
        degree, nodes = np.unique(np.concatenate(found), return_counts=True)
        return Degrees(degree.astype(float), nodes.astype(float))

    @property
    def edges(self) -> float:
        """E."""
        return float(self.degree @ self.nodes)

    def distinct(self, draws: float, share: float = 1.0, uniform: float = 0.0) -> float:
        """Nodes met by `draws` edges that lead into a random `share` of the nodes, and `uniform` draws of nodes."""
        rate = self.degree * draws / self.edges + uniform / self.nodes.sum()
        return float(share * (self.nodes @ -np.expm1(-rate / share))) if share > 0 else 0.0


def expected_manifest(
    users: int,
    items: int,
    interactions: int,
    modalities: list[Modality],
    parts: int,
    inside: float,
) -> Manifest:
    """The manifest that preparing such data would write, 8:1:1 split; digests and inputs are empty."""
    train = round(interactions * TRAIN)
    held_out = (interactions - train) // 2
    part = Part(
        users=users // parts,
        active_users=users // parts,
        items=items // parts,
        active_items=items // parts,
        train=train // parts,
        validation=held_out // parts,
        test=held_out // parts,
        inner_edges=round(train * inside / parts),
        halo_users=0,
        halo_items=0,
        digests={},
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name="expected",
        users=users,
        items=items,
        train=train,
        validation=held_out,
        test=held_out,
        user_stride=-(-round(users * (PADDING if parts > 1 else 1)) // parts),
        item_stride=-(-round(items * (PADDING if parts > 1 else 1)) // parts),
        parts=[part] * parts,
        modalities=modalities,
        split="random",
        user_id_type="int64",
        item_id_type="int64",
        counts={},
        settings={},
        inputs={},
        statistics={},
        versions={},
    )


@dataclass(frozen=True)
class Expectation:
    """What `world_size` equal ranks hold and touch."""

    manifest: Manifest
    settings: Settings
    mode: str
    world_size: int
    users: Degrees
    items: Degrees
    inside: float  # share of the interactions with both ends on one rank
    neighbours: float  # of an item in the item graph

    @property
    def _inside(self) -> float:
        return 1.0 if self.world_size == 1 else self.inside

    @property
    def _remote(self) -> float:
        """Share of the nodes that a rank does not own."""
        return 1 - 1 / self.world_size

    def _halo(self, degrees: Degrees, edges: float) -> Halo:
        rows = degrees.distinct(edges * (1 - self._inside), self._remote)
        return Halo(rows, rows)

    def _similar_halo(self, edges: float) -> Halo:
        """The item graph as if parts did not matter to it."""
        others = self.manifest.items * self._remote
        rows = -others * np.expm1(-edges * self._remote / others) if others else 0.0
        return Halo(float(rows), float(rows))

    def load(self) -> RankLoad:
        """What a rank holds."""
        manifest, ranks = self.manifest, self.world_size
        parts = -(-manifest.num_parts // ranks)
        edges, similar = manifest.train / ranks, manifest.items * self.neighbours / ranks
        user_rows, item_rows = parts * manifest.user_stride, parts * manifest.item_stride
        to_user, to_item = self._halo(self.items, edges), self._halo(self.users, edges)
        alike = self._similar_halo(similar)
        nodes = (manifest.users + 2 * manifest.items) / ranks + to_user.received + to_item.received + alike.received
        held_out = {}
        for split in layout.HELD_OUT:
            count = getattr(manifest, split) / ranks
            held_out[split] = (min(manifest.users / ranks, count), count)
        return RankLoad(
            parts,
            user_rows,
            item_rows,
            manifest.users / ranks,
            manifest.items / ranks,
            Relation(user_rows, edges, to_user),
            Relation(item_rows, edges, to_item),
            Relation(item_rows, similar, alike),
            nodes,
            1 / parts,
            held_out,
        )

    def step(self) -> RankStep:
        """What a step touches on a rank."""
        ranks, train = self.world_size, self.manifest.train
        batch = train / max(1, -(-train // self.settings.train.batch_size))
        drawn = 0.0 if self.settings.negatives == "in_batch" else batch
        users = self.users.distinct(batch) / ranks
        items = self.items.distinct(batch, uniform=drawn) / ranks
        repelled = (self.items.distinct(0, uniform=drawn) / ranks) if drawn else items
        remote = 0.0 if self.settings.negatives == "local" else drawn / ranks * self._remote
        own = batch / ranks
        positive = self._halo(self.items, own)
        asked = self.items.distinct(own * (1 - self._inside), self._remote, remote) if ranks > 1 else 0.0
        layers = self._exact(users, items) if self.mode == "exact" else self._sampled(batch, drawn)
        return RankStep(own, users, items, asked, *layers, positive, users, repelled)

    def _exact(self, users: float, items: float) -> tuple[list[Relation], list[Relation], list[Relation], float, float]:
        load, options = self.load(), self.settings.propagation
        layers, alike = options.user_item_layers, options.item_item_layers
        # A positive's user is met in proportion to its degree, so the batch's users have more edges than most.
        share = float((self.users.degree * self.users.nodes) @ self._met(self.users)) / self.users.edges
        batch = Relation(users, load.user_from_item.edges * share, load.user_from_item.halo)
        few = Relation(items, items * self.neighbours, load.similar.halo)
        return (
            [batch, *[load.user_from_item] * (layers - 1)] if layers else [],
            [load.item_from_user] * layers,
            [few, *[load.similar] * (alike - 1)] if alike else [],
            load.user_rows,
            load.item_rows,
        )

    def _met(self, degrees: Degrees) -> np.ndarray:
        """Probability of a node of each degree to be in the batch."""
        return -np.expm1(-degrees.degree * self.settings.train.batch_size / degrees.edges)

    def _sampled(
        self, batch: float, drawn: float
    ) -> tuple[list[Relation], list[Relation], list[Relation], float, float]:
        """Frontiers as probabilities of reaching a node of each degree, layer by layer."""
        ranks, fanouts = self.world_size, Fanouts.of(self.settings.propagation)
        users, items = self.users, self.items
        u = self._met(users)
        i = -np.expm1(-items.degree * batch / items.edges - drawn / items.nodes.sum())
        alike, to_user, to_item = [], [], []
        for fanout in fanouts.similar:
            rows = items.nodes @ i
            edges = rows * (self.neighbours if fanout == -1 else min(fanout, self.neighbours))
            alike.append(Relation(rows / ranks, edges / ranks, self._similar_halo(edges / ranks)))
            i = 1 - (1 - i) * np.exp(-edges / items.nodes.sum())
        for fanout in fanouts.user_item:
            most = np.inf if fanout == -1 else fanout
            user_rows, item_rows = users.nodes @ u, items.nodes @ i
            user_edges = float((users.nodes * u) @ np.minimum(users.degree, most))
            item_edges = float((items.nodes * i) @ np.minimum(items.degree, most))
            to_user.append(Relation(user_rows / ranks, user_edges / ranks, self._halo(items, user_edges / ranks)))
            to_item.append(Relation(item_rows / ranks, item_edges / ranks, self._halo(users, item_edges / ranks)))
            i = 1 - (1 - i) * np.exp(-items.degree * user_edges / items.edges)
            u = 1 - (1 - u) * np.exp(-users.degree * item_edges / users.edges)
        return to_user, to_item, alike, float(users.nodes @ u) / ranks, float(items.nodes @ i) / ranks


def item_neighbours(manifest: Manifest, k: int) -> float:
    """Of an item in the item graph: itself and k - 1 others a modality, some of which are shared."""
    return 1 + (k - 1) * len(manifest.modalities) * (MODALITY_OVERLAP if len(manifest.modalities) > 1 else 1)
