"""Bytes that a rank sends to others in a step and in an evaluation, by kind, from the sizes of the step.

The same conventions as `cm3_dist.distributed.traffic`, which counts what a run really sends.
"""

from __future__ import annotations

import math

from cm3_dist.capacity.sizes import RankLoad, RankStep, Relation
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.traffic import Kind, gathered, summed
from cm3_dist.model.dimensions import Widths, dense_weights, tables
from cm3_dist.model.local_table import can_update
from cm3_dist.ranking.metrics import NAMES
from partition.folder.manifest import Manifest

ID = FLOAT64 = 8
FLOAT = 4
# TorchRec's lookup of own rows still tells every other rank how much is asked of it: three sizes and a length.
LOOKUP = 32


def step_bytes(
    manifest: Manifest, settings: Settings, mode: str, world_size: int, step: RankStep
) -> dict[Kind | str, float]:
    """Of one rank in one step; "table lookups" are TorchRec's own."""
    if world_size == 1:
        return {}
    widths, sampled, loss = Widths.of(manifest, settings), mode == "sampled", settings.loss
    others, row = world_size - 1, widths.row * FLOAT
    layers = [*step.user_from_item, *step.item_from_user]
    # Sampled: every layer's sources are asked for. Either way the batch's items (with counts) and its positives are.
    reached = [*layers, *step.similar] if sampled else []
    ids = (2 + len(reached)) * others * ID + 2 * ID * step.asked + ID * step.positive_halo.received
    sums = 2 * summed((4 + world_size) * FLOAT64, world_size) + (summed(ID, world_size) if sampled else 0)
    return {
        "ids": ids + ID * sum(relation.halo.received for relation in reached),
        "planning sums": sums,
        "user-item rows": row * _rows_both_ways(step, sampled),
        "item-graph rows": row * sum(map(_there_and_back, step.similar)),
        "positive rows": row * (step.positive_halo.sent + step.positive_halo.received),
        "loss rows": gathered(_gathered_rows(settings, widths, step), world_size) if loss.scope == "global" else 0,
        "loss sums": (1 if loss.item_uniformity == "none" else 2) * summed(FLOAT64, world_size),
        "dense gradients": summed((dense_weights(manifest, settings) + 2 + world_size) * FLOAT, world_size),
        "table lookups": 0 if can_update(settings.tables) else LOOKUP * others * len(tables(manifest, settings)),
    }


def _there_and_back(relation: Relation) -> float:
    """Rows that others ask for, and the gradients of rows that this rank asked for."""
    return relation.halo.sent + relation.halo.received


def _rows_both_ways(step: RankStep, sampled: bool) -> float:
    """Rows sent for the user-item layers, forward and backward."""
    if sampled:
        return sum(_there_and_back(relation) for relation in (*step.user_from_item, *step.item_from_user))
    # Exact: the adjoint of a whole relation is the other one, forward. The nearest layer's users are not whole: the
    # gradients of what they fetched go back.
    forward = sum(relation.halo.sent for relation in (*step.user_from_item, *step.item_from_user))
    back = sum(relation.halo.sent for relation in (*step.item_from_user[1:], *step.user_from_item))
    return forward + back + sum(relation.halo.received for relation in step.user_from_item[:1])


def _gathered_rows(settings: Settings, widths: Widths, step: RankStep) -> int:
    """Bytes of one rank's block of the two gathers, padded to the rank with most rows; a row carries its weight."""
    kind = settings.loss.item_uniformity
    item = {"none": 0, "plain": widths.row + 1, "calibrated": widths.row + widths.dim + 1}[kind]
    return math.ceil(FLOAT * (step.most_users * (widths.row + 1) + step.most_items * item))


def evaluation_bytes(
    manifest: Manifest, settings: Settings, mode: str, world_size: int, load: RankLoad
) -> dict[Kind | str, float]:
    """Of one rank in one evaluation: exact propagation, then its items travel to all others.

    Exact training has planned what it fetches; after sampled training every evaluation asks anew.
    """
    if world_size == 1:
        return {}
    row, options = Widths.of(manifest, settings).row * FLOAT, settings.propagation
    sums = (len(NAMES) * len(settings.evaluate.ks) + 1) * FLOAT64
    flags = 2 * FLOAT  # whether users' and items' rows are finite
    halo = load.user_from_item.halo.sent + load.item_from_user.halo.sent
    relations = [load.user_from_item, load.item_from_user, *([load.similar] if options.item_item_layers else [])]
    ids = sum((world_size - 1) * ID + ID * relation.halo.received for relation in relations)
    return {
        "ids": ids if mode == "sampled" else 0,
        "user-item rows": row * options.user_item_layers * halo,
        "item-graph rows": row * options.item_item_layers * load.similar.halo.sent,
        "ranked items": gathered(load.item_rows * (row + 1), world_size),
        "evaluation sums": summed(flags, world_size) + summed(sums, world_size),
    }
