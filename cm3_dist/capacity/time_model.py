"""Seconds of a step and an evaluation: operations, bytes of memory and bytes between ranks, each divided by its rate.

Nothing overlaps except planning, which a thread does ahead. A guide to orders of magnitude and to what dominates:
unlike memory and traffic, times were compared with few measurements (docs/capacity.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from cm3_dist.capacity.dry_run import Usage
from cm3_dist.capacity.scenario import RankLoad, RankStep, Scenario

FLOAT = 4
# Seconds that one thread takes to plan: a drawn edge of a sampled step, an item of an exact one, any step. Measured.
PLAN_EDGE, PLAN_ITEM, PLAN_STEP = 0.35e-6, 0.1e-6, 3e-3
LATENCY = 30e-6  # of a collective, seconds
KERNELS, LAUNCH = 370, 10e-6  # launched by the host in a step on a GPU, seconds each
SWEEPS = 8, 12  # times that a step reads or writes the rows of its users and of its items


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on one rank."""

    encoder: float
    propagation: float
    loss: float
    rows: float  # tables, normalisation, fusion: sweeps over memory
    launch: float
    exchange: float
    planning: float

    def total(self, prefetch: int) -> float:
        """With planning ahead of the step, or with `prefetch` 0 before it."""
        computing = sum(vars(self).values()) - self.planning
        return max(computing, self.planning) if prefetch else computing + self.planning


def step_time(scenario: Scenario, step: RankStep, usage: Usage, sent: float) -> StepTime:
    """`sent`: bytes that the rank sends in the step."""
    hardware, row = scenario.hardware, scenario.widths.row * FLOAT
    edges = sum(layer.edges for layer in step.relations)
    moved = row * sum(2 * (layer.edges + 2 * layer.rows) for layer in step.relations)
    collectives = 0 if scenario.ranks == 1 else 4 * len(step.relations) + 7
    planned = PLAN_ITEM * step.input_items if scenario.mode == "exact" else PLAN_EDGE * edges
    # The loss computes its gradients in the forward pass, so the products of the backward pass are the encoder's.
    encoder = usage.flops.get("encoder and lookup", 0) + usage.flops.get("backward pass", 0)
    return StepTime(
        encoder=encoder / hardware.compute,
        propagation=moved / hardware.copy,
        loss=usage.flops.get("loss", 0) / hardware.compute,
        rows=row * (SWEEPS[0] * step.input_users + SWEEPS[1] * step.input_items) / hardware.copy,
        launch=KERNELS * LAUNCH if hardware.device == "cuda" else 0,
        exchange=sent / hardware.link + collectives * LATENCY,
        planning=PLAN_STEP + planned,
    )


def evaluation_time(scenario: Scenario, load: RankLoad, usage: Usage, ranked: float, sent: float) -> float:
    """Final rows of all nodes once, then `ranked` users of this rank against the whole catalogue."""
    hardware, width = scenario.hardware, scenario.widths.row
    scores = ranked * scenario.manifest.item_rows
    computed = (sum(usage.flops.values()) + 2 * scores * width) / hardware.compute
    edges = scenario.settings.propagation.user_item_layers * sum(relation.edges for relation in load.relations[:2])
    # A score is written, masked, and read for its group's maximum.
    moved = FLOAT * width * edges + 4 * FLOAT * scores
    return computed + moved / hardware.copy + sent / hardware.link
