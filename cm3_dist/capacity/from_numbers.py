"""Sizes expected from numbers alone, where there is no prepared folder, or none small enough to draw steps from.

Assumptions: ranks are alike; a share `inside` of the interactions joins nodes of one rank, as the cut leaves it; apart
from that an edge reaches a node in proportion to its degree, independently of others (a random graph with these
degrees), so that n edges reach sum_v 1 - (1 - degree_v / E)^n unique nodes. Degrees are those of the folder, or power
laws like Amazon Baby's. Tastes that gather users around the same items make real frontiers and halos smaller than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cm3_dist.capacity.hardware import Hardware
from cm3_dist.capacity.scenario import Degrees, Halo, Layers, RankLoad, RankStep, Relation, Scenario, exact_layers
from cm3_dist.config.settings import Settings
from cm3_dist.graph.neighbor_sampling import Fanouts
from partition.folder import layout
from partition.folder.manifest import SCHEMA_VERSION, Manifest, Modality
from partition.synthetic.options import parse_modalities

INSIDE = 0.5  # share of interactions that METIS leaves on one rank, unless given
PADDING = 1.03  # rows of the row space per node, METIS
TRAIN = 0.8
# Degree of the node of rank r among n: proportional to (r / n + offset)^-exponent; fitted to Amazon Baby.
USER_LAW, ITEM_LAW = (0.55, 0.005), (0.85, 0.008)
MODALITY_OVERLAP = 0.9  # share of the neighbours of two modalities that differ


def scenario_from_numbers(
    settings: Settings, sizes: list[int], modalities: str, hardware: Hardware, inside: float | None, k: int
) -> Scenario:
    """`sizes`: users, items, interactions; one part per rank; `k` neighbours per item and modality."""
    share = max(INSIDE, 1 / hardware.ranks) if inside is None else inside
    found = [
        Modality.model_validate({"name": name, "source_dim": width.dim, "dim": width.dim, "dtype": width.dtype})
        for name, width in parse_modalities(modalities).items()
    ]
    manifest = expected_manifest(sizes, found, hardware.ranks, share)
    # An item's neighbours: itself and k - 1 others per modality, some of which are shared.
    neighbours = 1 + (k - 1) * len(found) * (MODALITY_OVERLAP if len(found) > 1 else 1)
    degrees = power_law(sizes[0], manifest.train, USER_LAW), power_law(sizes[1], manifest.train, ITEM_LAW)
    return Scenario(manifest, settings, hardware, share, neighbours, *degrees)


def on_ranks(scenario: Scenario, ranks: int) -> Scenario:
    """The same data prepared for another number of ranks."""
    old = scenario.manifest
    sizes = [old.users, old.items, old.train + old.validation + old.test]
    manifest = expected_manifest(sizes, old.modalities, ranks, scenario.inside)
    return scenario.changed(manifest=manifest, hardware=replace(scenario.hardware, ranks=ranks))


def power_law(nodes: int, edges: int, law: tuple[float, float], buckets: int = 400) -> Degrees:
    """Degrees of `nodes` nodes with `edges` edges in all."""
    cuts = np.unique(np.geomspace(1, nodes + 1, buckets).astype(np.int64)) - 1
    count = np.diff(cuts).astype(float)
    weight = ((cuts[:-1] + cuts[1:]) / 2 / nodes + law[1]) ** -law[0]
    return Degrees(weight * edges / (weight * count).sum(), count)


def expected_manifest(sizes: list[int], modalities: list[Modality], parts: int, inside: float) -> Manifest:
    """The manifest that preparing such data would write, split 8:1:1; digests and inputs are empty."""
    users, items, interactions = sizes
    train = round(interactions * TRAIN)
    held_out = (interactions - train) // 2
    padding = PADDING if parts > 1 else 1
    counts = {"users": users, "items": items, "train": train, "validation": held_out, "test": held_out}
    part = {name: count // parts for name, count in counts.items()}
    part |= {"active_users": part["users"], "active_items": part["items"], "halo_users": 0, "halo_items": 0}
    inner = round(train * inside / parts)
    return Manifest.model_validate(
        {
            **counts,
            "schema_version": SCHEMA_VERSION,
            "name": "expected",
            "user_stride": -(-round(users * padding) // parts),
            "item_stride": -(-round(items * padding) // parts),
            "parts": [{**part, "inner_edges": inner, "digests": {}}] * parts,
            "modalities": modalities,
            "split": "random",
            "user_id_type": "int64",
            "item_id_type": "int64",
            **{name: {} for name in ("counts", "settings", "inputs", "statistics", "versions")},
        }
    )


@dataclass(frozen=True)
class Expectation:
    """What equal ranks hold and touch."""

    scenario: Scenario

    @property
    def _remote(self) -> float:
        """Share of the nodes that a rank does not own."""
        return 1 - 1 / self.scenario.ranks

    def _crossing(self, edges: float) -> float:
        """Of `edges` edges, those that lead to another rank."""
        return edges * (1 - self.scenario.inside) if self.scenario.ranks > 1 else 0.0

    def _halo(self, degrees: Degrees, edges: float) -> Halo:
        rows = degrees.distinct(self._crossing(edges), self._remote)
        return Halo(rows, rows)

    def _similar_halo(self, edges: float) -> Halo:
        """The item graph is independent of the parts."""
        others = self.scenario.manifest.items * self._remote
        rows = float(-others * np.expm1(-edges * self._remote / others)) if others else 0.0
        return Halo(rows, rows)

    def load(self) -> RankLoad:
        """What a rank holds."""
        scenario, manifest, ranks = self.scenario, self.scenario.manifest, self.scenario.ranks
        parts = -(-manifest.num_parts // ranks)
        edges, similar_edges = manifest.train / ranks, manifest.items * scenario.neighbours / ranks
        user_rows, item_rows = parts * manifest.user_stride, parts * manifest.item_stride
        to_user = Relation(user_rows, edges, self._halo(scenario.items, edges))
        to_item = Relation(item_rows, edges, self._halo(scenario.users, edges))
        similar = Relation(item_rows, similar_edges, self._similar_halo(similar_edges))
        halo = sum(relation.halo.received for relation in (to_user, to_item, similar))
        held_out = {split: getattr(manifest, split) / ranks for split in layout.HELD_OUT}
        return RankLoad(
            parts=parts,
            user_rows=user_rows,
            item_rows=item_rows,
            users=manifest.users / ranks,
            items=manifest.items / ranks,
            user_from_item=to_user,
            item_from_user=to_item,
            similar=similar,
            part_nodes=(manifest.users + 2 * manifest.items) / ranks + halo,
            held_out={split: (min(manifest.users / ranks, count), count) for split, count in held_out.items()},
        )

    def step(self) -> RankStep:
        """What a step touches on a rank."""
        scenario, ranks = self.scenario, self.scenario.ranks
        settings, train = scenario.settings, scenario.manifest.train
        batch = train / max(1, -(-train // settings.train.batch_size))
        drawn = 0.0 if settings.negatives == "in_batch" else batch
        users = scenario.users.distinct(batch) / ranks
        items = scenario.items.distinct(batch, uniform=drawn) / ranks
        remote = 0.0 if settings.negatives == "local" else drawn / ranks * self._remote
        layers = self._exact(users, items) if scenario.mode == "exact" else self._sampled(batch, drawn)
        return RankStep(
            **vars(layers),
            positives=batch / ranks,
            users=users,
            items=items,
            requested=scenario.items.distinct(self._crossing(batch / ranks), self._remote, remote),
            positive_halo=self._halo(scenario.items, batch / ranks),
            most_users=users,
            most_items=scenario.items.distinct(0, uniform=drawn) / ranks if drawn else items,
        )

    def _in_batch(self, degrees: Degrees, batch: float, uniform: float = 0.0) -> np.ndarray:
        """Probability of a node of each degree to be in the batch."""
        return -np.expm1(-degrees.degree * batch / degrees.edges - uniform / degrees.nodes.sum())

    def _exact(self, users: float, items: float) -> Layers:
        load, degrees = self.load(), self.scenario.users
        # A positive's user is drawn in proportion to its degree, so the batch's users have more edges than most.
        in_batch = self._in_batch(degrees, self.scenario.settings.train.batch_size)
        edges = load.user_from_item.edges * float((degrees.degree * degrees.nodes) @ in_batch) / degrees.edges
        batch_items = items, items * self.scenario.neighbours
        return exact_layers(self.scenario.settings.propagation, load, (users, edges), batch_items)

    def _sampled(self, batch: float, drawn: float) -> Layers:
        """Frontiers as probabilities of reaching a node of each degree, layer by layer."""
        scenario, ranks = self.scenario, self.scenario.ranks
        fanouts, users, items = Fanouts.of(scenario.settings.propagation), scenario.users, scenario.items
        u = self._in_batch(users, scenario.settings.train.batch_size)
        i = self._in_batch(items, batch, drawn)
        similar, to_user, to_item = [], [], []
        for fanout in fanouts.similar:
            rows = items.nodes @ i
            edges = rows * (scenario.neighbours if fanout == -1 else min(fanout, scenario.neighbours))
            similar.append(Relation(rows / ranks, edges / ranks, self._similar_halo(edges / ranks)))
            i = 1 - (1 - i) * np.exp(-edges / items.nodes.sum())
        for fanout in fanouts.user_item:
            most = np.inf if fanout == -1 else fanout
            user_edges = float((users.nodes * u) @ np.minimum(users.degree, most))
            item_edges = float((items.nodes * i) @ np.minimum(items.degree, most))
            halos = self._halo(items, user_edges / ranks), self._halo(users, item_edges / ranks)
            to_user.append(Relation(users.nodes @ u / ranks, user_edges / ranks, halos[0]))
            to_item.append(Relation(items.nodes @ i / ranks, item_edges / ranks, halos[1]))
            i = 1 - (1 - i) * np.exp(-items.degree * user_edges / items.edges)
            u = 1 - (1 - u) * np.exp(-users.degree * item_edges / users.edges)
        return Layers(to_user, to_item, similar, float(users.nodes @ u) / ranks, float(items.nodes @ i) / ranks)
