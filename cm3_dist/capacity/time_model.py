"""Seconds of a step, an epoch and an evaluation: operations, bytes of memory and bytes between ranks over their rates.

Nothing overlaps but planning, which a thread does ahead. A guide to orders of magnitude and to what dominates: unlike
memory and traffic, times were compared with few measurements (docs/capacity.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from cm3_dist.capacity.hardware import KERNELS, LATENCY, LAUNCH, PLAN_EDGE, PLAN_ITEM, PLAN_STEP, Machine
from cm3_dist.capacity.sizes import RankLoad, RankStep
from cm3_dist.config.settings import Settings
from cm3_dist.model.dimensions import Widths
from partition.folder.manifest import Manifest

FLOAT = 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on one rank. `planning` counts where it is longer than all the rest."""

    encoder: float
    propagation: float
    loss: float
    rows: float  # tables, normalisation, fusion: sweeps over memory
    launch: float
    exchange: float
    planning: float

    @property
    def computing(self) -> float:
        """What the step itself takes."""
        return self.encoder + self.propagation + self.loss + self.rows + self.launch + self.exchange

    def total(self, prefetch: int) -> float:
        """With planning ahead, or in turn."""
        return max(self.computing, self.planning) if prefetch else self.computing + self.planning


def step_time(
    manifest: Manifest, settings: Settings, mode: str, machine: Machine, step: RankStep, sent: float
) -> StepTime:
    """`sent`: bytes that the rank sends in the step."""
    widths = Widths.of(manifest, settings)
    row, dim = widths.row * FLOAT, widths.dim
    # Features are frozen: products of the first layers have a gradient of their weights only.
    weights = sum(5 * dim * modality.dim * 4 + 4 * dim * dim * 6 for modality in manifest.modalities)
    layers = [*step.user_from_item, *step.item_from_user, *step.similar]
    edges = sum(layer.edges for layer in layers)
    moved = row * sum(2 * (layer.edges + 2 * layer.rows) for layer in layers)
    ranks = machine.ranks if settings.loss.scope == "global" else 1
    pairs = step.most_users**2 * widths.row + step.most_items**2 * (widths.row + dim)
    sweeps = 8 * row * step.input_users + 12 * row * step.input_items
    collectives = 0 if machine.ranks == 1 else 4 * len(layers) + 7
    items = step.input_items
    planning = PLAN_STEP + (PLAN_ITEM * items if mode == "exact" else PLAN_EDGE * edges)
    return StepTime(
        encoder=items * weights / machine.compute,
        propagation=moved / machine.copy,
        loss=4 * ranks * pairs / machine.compute,
        rows=sweeps / machine.copy,
        launch=KERNELS * LAUNCH if machine.device == "cuda" else 0,
        exchange=sent / machine.link + collectives * LATENCY,
        planning=planning,
    )


def evaluation_time(
    manifest: Manifest, settings: Settings, machine: Machine, load: RankLoad, ranked: float, sent: float
) -> float:
    """Encoding and propagating everything once, then `ranked` users of this rank against the whole catalogue."""
    widths, options = Widths.of(manifest, settings), settings.propagation
    row = widths.row * FLOAT
    weights = sum(5 * widths.dim * modality.dim * 2 for modality in manifest.modalities)
    edges = options.user_item_layers * (load.user_from_item.edges + load.item_from_user.edges)
    scores = ranked * manifest.item_rows
    computed = (load.item_rows * weights + 2 * scores * widths.row) / machine.compute
    # A score is written, masked, and read for its group's maximum.
    return computed + (row * edges + 4 * FLOAT * scores) / machine.copy + sent / machine.link
