"""Memory of one rank by item, from what it holds and what a step touches.

Every line says which arrays it counts, in bytes. On the CPU everything lies on the host; on a GPU tables, encoder,
operator and activations lie on the device. Mapped feature files are the machine's page cache, not a rank's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cm3_dist.capacity.activations import Live, evaluation_live, step_live
from cm3_dist.capacity.sizes import RankLoad, RankStep, Relation
from cm3_dist.config.settings import Settings
from cm3_dist.model.dimensions import dense_weights
from partition.folder.manifest import Manifest

Place = Literal["host", "device"]
Phase = Literal["always", "load", "step", "evaluation"]
INT64, INT32, FLOAT, MIB = 8, 4, 4, 2**20
EDGE = INT64 + FLOAT  # of a CSR matrix: index and value
PART_EDGE = INT32 + FLOAT  # of a part: source, value
# Anonymous memory of a process before it loads anything (Python, torch, TorchRec), and what its first steps add: thread
# stacks, buffers of the matrix products, DGL where neighbours are drawn.
PROCESS, WARM, DGL = 333 * MIB, 5 * MIB, 10 * MIB
# glibc keeps freed blocks up to 32 MiB (`runtime._keep_freed_memory`): what it keeps above what is in use at the peak,
# as a share of the blocks of that size, measured.
KEPT = 0.3


@dataclass(frozen=True)
class Item:
    """One line of the memory of a rank. `load` ends before the rest of `always` is there."""

    name: str
    bytes: float
    place: Place
    phase: Phase


def rank_memory(
    manifest: Manifest,
    settings: Settings,
    mode: str,
    device: str,
    world_size: int,
    load: RankLoad,
    step: RankStep,
    table_bytes: tuple[float, float],
) -> list[Item]:
    """All items of one rank; `table_bytes`: its rows and its optimizer state, from TorchRec's planner."""
    place: Place = "device" if device == "cuda" else "host"
    dense = 4 * FLOAT * dense_weights(manifest, settings)  # weights, gradients, two moments
    stored = sum(modality.dim * np.dtype(modality.dtype).itemsize for modality in manifest.modalities)
    live, ranked = step_live(manifest, settings, mode, world_size, step), evaluation_live(manifest, settings, load)
    items = [
        Item("process", PROCESS + WARM + (DGL if mode == "sampled" else 0), "host", "always"),
        Item("tables", table_bytes[0], place, "always"),
        Item("table optimizer", table_bytes[1], place, "always"),
        Item("encoder and its optimizer", dense, place, "always"),
        Item("features, resident", load.item_rows * stored if mode == "exact" else 0, place, "always"),
        Item("graph: parts", _parts(load), "host", "always"),
        # In sampled mode the exact operator is made for an evaluation, without the item graph's transpose.
        Item("graph: operator", _operator(load, mode), "host", "always" if mode == "exact" else "evaluation"),
        Item("positives and their order", _batches(load, settings), "host", "always"),
        Item("row numbers and degrees", 3 * INT64 * (load.user_rows + load.item_rows), "host", "always"),
        Item("held-out interactions", _held_out(load), "host", "always"),
        Item("loading the parts", _loading(load, mode), "host", "load"),
        Item("plans ahead", (settings.machine.prefetch + 2) * plan_bytes(manifest, mode, load, step), "host", "step"),
        Item("planning", _planning(mode, load, step), "host", "step"),
        *(Item(name, size, place, "step") for name, size in live.named.items()),
        *(Item(name, size, place, "evaluation") for name, size in ranked.named.items()),
    ]
    if place == "device" and mode == "exact":
        items.append(Item("operator on the device", _operator(load, mode), place, "always"))
    if place == "device":
        items.append(Item("plan on the device", plan_bytes(manifest, mode, load, step), place, "step"))
    else:
        items += [_kept(live, "step"), _kept(ranked, "evaluation")]
    return [item for item in items if item.bytes]


def peak(items: list[Item], place: Place) -> float:
    """Bytes at the highest in one place."""
    total = dict.fromkeys(("always", "load", "step", "evaluation"), 0.0)
    for item in items:
        if item.place == place:
            total[item.phase] += item.bytes
    process = sum(item.bytes for item in items if item.name == "process" and item.place == place)
    return max(process + total["load"], total["always"] + max(total["step"], total["evaluation"]))


def mapped_features(manifest: Manifest, load: RankLoad) -> float:
    """Bytes of the feature files of a rank's items, of which the page cache keeps what fits."""
    return load.items * sum(modality.dim * np.dtype(modality.dtype).itemsize for modality in manifest.modalities)


def plan_bytes(manifest: Manifest, mode: str, load: RankLoad, step: RankStep) -> float:
    """A step's plan: operators with their transposes, features (sampled), ids, curve."""
    stored = sum(modality.dim * np.dtype(modality.dtype).itemsize for modality in manifest.modalities)
    batch = 8 * INT64 * step.positives
    if mode == "exact":
        own = [*step.user_from_item[:1], *step.similar[:1]]
        matrices = sum(2 * EDGE * relation.edges for relation in own)
        sources = len(own) * load.item_rows + sum(relation.halo.received for relation in own)
        return matrices + INT64 * sources + FLOAT * load.item_rows + batch
    layers = [*step.user_from_item, *step.item_from_user, *step.similar]
    matrices = sum(2 * EDGE * layer.edges + INT64 * (layer.rows + layer.halo.received) for layer in layers)
    transposes = INT64 * len(layers) * (step.input_users + step.input_items) / 2
    entering = step.input_items * (stored + INT64 + FLOAT) + INT64 * step.input_users
    return matrices + transposes + entering + batch


def _planning(mode: str, load: RankLoad, step: RankStep) -> float:
    if mode == "exact":  # the curve's random numbers
        return 5 * INT64 * load.item_rows
    layers = [*step.user_from_item, *step.item_from_user, *step.similar]
    widest = max((layer.edges for layer in layers), default=0)
    return INT64 * (load.user_rows + load.item_rows) + 12 * INT64 * widest


def _relations(load: RankLoad) -> list[Relation]:
    return [load.user_from_item, load.item_from_user, load.similar]


def _edges(load: RankLoad) -> float:
    return sum(relation.edges for relation in _relations(load))


def _operator(load: RankLoad, mode: str) -> float:
    """The exact operator: CSR matrices, who sends which rows, and for training the item graph's transpose."""
    matrices = sum(EDGE * relation.edges + INT64 * relation.rows for relation in _relations(load))
    sent = sum(INT64 * relation.halo.sent for relation in _relations(load))
    transpose = EDGE * load.similar.edges + INT64 * (load.similar.rows + load.similar.halo.received)
    return matrices + sent + (transpose if mode == "exact" else 0)


def _parts(load: RankLoad) -> float:
    """The parts' own edges and row numbers, and what each user interacted with."""
    starts = INT64 * (2 * load.user_rows + 2 * load.item_rows)
    return PART_EDGE * _edges(load) + INT64 * load.part_nodes + starts + INT32 * load.user_from_item.edges


def _loading(load: RankLoad, mode: str) -> float:
    """All parts' edges, and one relation being sorted: its ends, their concatenation, the order and the result."""
    relations = _relations(load) if mode == "exact" else [load.user_from_item]
    widest = max(relation.edges for relation in relations)
    made = EDGE * (_edges(load) - widest) if mode == "exact" else 0
    return _parts(load) + made + 7 * INT64 * widest


def _batches(load: RankLoad, settings: Settings) -> float:
    """Every positive's user, an epoch's order, and (user, item) keys where negatives are drawn."""
    arrays = INT32 + INT64 + (0 if settings.negatives == "in_batch" else INT64)
    return arrays * load.user_from_item.edges


def _held_out(load: RankLoad) -> float:
    return sum(INT64 * (2 * users + interactions) for users, interactions in load.held_out.values())


def _kept(live: Live, phase: Phase) -> Item:
    return Item("freed blocks that are kept", KEPT * live.small, "host", phase)
