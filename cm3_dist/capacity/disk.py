"""Bytes on disk, and what preparation takes."""

from __future__ import annotations

from pathlib import Path

from cm3_dist.capacity.scenario import RankLoad, Scenario
from cm3_dist.model.dimensions import dense_weights
from partition.cut.streaming import METIS_EDGES
from partition.folder import layout
from partition.folder.manifest import Manifest

INT32, INT64, FLOAT, FLOAT64 = 4, 8, 4, 8
ID_BYTES = {"int64": INT64, "string": 20}  # an id that is text: about
APPROXIMATE_ABOVE = 200_000  # items from which the item graph is searched approximately
# One process on two cores, measured at 15M and 42M interactions (docs/scale.md). Seconds: an interaction to read,
# clean, split, cut and write; exact search per pair and feature value; approximate search, and copying, per value.
PREPARE_EDGE, PREPARE_PAIR, PREPARE_SEARCH, PREPARE_VALUE = 6e-6, 2.5e-11, 7.5e-7, 4e-9
# Its own memory, measured at 8M, 16M and 42M interactions. Bytes: a node; an interaction of the part that is written,
# and in METIS's graph up to METIS_EDGES of them, else in the streaming partitioner's two lists.
PREPARE_NODE_BYTES, PREPARE_PART_BYTES, METIS_BYTES, STREAM_BYTES = 330, 57, 200, 8
PREPARE_PROCESS, METIS_PROCESS = 230 * 2**20, 410 * 2**20  # the programs: METIS has one of its own, with torch


def checkpoint_bytes(scenario: Scenario, table_bytes: tuple[float, float]) -> float:
    """One checkpoint: tables, their optimizer's state, the encoder with two moments."""
    return scenario.ranks * sum(table_bytes) + 3 * FLOAT * dense_weights(scenario.manifest, scenario.settings)


def prepared_bytes(scenario: Scenario, loads: list[RankLoad]) -> dict[str, float]:
    """A prepared folder by kind of file, expected from the `loads` of all ranks."""
    manifest = scenario.manifest
    edges = sum(load.user_from_item.edges + load.item_from_user.edges for load in loads)
    similar = sum(load.similar.edges for load in loads)
    nodes = sum(load.part_nodes - load.items - load.similar.halo.received for load in loads)
    weights = FLOAT * edges + FLOAT64 * nodes if manifest.weighted else 0.0
    return {
        "graph": 2 * INT64 * edges + (INT64 + INT32) * nodes + weights,
        "item graph": (INT64 + FLOAT) * similar + INT64 * manifest.items,
        "features": scenario.feature_bytes(manifest.items),
        "held-out": 2.0 * INT64 * (manifest.validation + manifest.test),
        "ids": (ID_BYTES[manifest.user_id_type] + INT64) * manifest.users
        + (ID_BYTES[manifest.item_id_type] + INT64) * manifest.items,
    }


def folder_bytes(root: Path, manifest: Manifest) -> dict[str, float]:
    """The same, of an existing folder."""
    kinds = {layout.GRAPH: "graph", layout.ITEM_GRAPH: "item graph", layout.USERS: "ids", layout.ITEMS: "ids"}
    kinds |= dict.fromkeys(layout.HELD_OUT.values(), "held-out")
    kinds |= {layout.features_file(modality.name): "features" for modality in manifest.modalities}
    kinds |= {layout.missing_file(modality.name): "features" for modality in manifest.modalities if modality.masked}
    sizes = dict.fromkeys(kinds.values(), 0.0)
    for part in range(manifest.num_parts):
        for name, kind in kinds.items():
            sizes[kind] += (layout.part_dir(root, part) / name).stat().st_size
    return sizes


def preparation_seconds(manifest: Manifest) -> float:
    """One process on two cores."""
    interactions = manifest.train + manifest.validation + manifest.test
    width = sum(modality.dim for modality in manifest.modalities)
    exact = manifest.items <= APPROXIMATE_ABOVE
    search = PREPARE_PAIR * manifest.items**2 if exact else PREPARE_SEARCH * manifest.items
    return PREPARE_EDGE * interactions + (search + PREPARE_VALUE * manifest.items) * width


def preparation_bytes(manifest: Manifest) -> float:
    """Its own memory at the peak, without mapped files: nodes, and the stage that holds most of the interactions."""
    metis = manifest.train <= METIS_EDGES
    cutting = METIS_PROCESS + METIS_BYTES * manifest.train if metis else STREAM_BYTES * manifest.train
    part = PREPARE_PART_BYTES * manifest.train / manifest.num_parts
    return PREPARE_PROCESS + PREPARE_NODE_BYTES * (manifest.users + manifest.items) + max(cutting, part)
