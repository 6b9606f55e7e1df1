"""Bytes that a rank sends to others in a step and in an evaluation, by kind.

The dry run counts what the model and the loss send; what planning, the optimizer and the ranking send follows from the
sizes, with the functions of `cm3_dist.distributed.traffic`, which count what a run really sends.
"""

from __future__ import annotations

from cm3_dist.capacity.dry_run import Usage
from cm3_dist.capacity.scenario import RankLoad, RankStep, Scenario
from cm3_dist.distributed.traffic import gathered, summed
from cm3_dist.model.dimensions import dense_weights, tables
from cm3_dist.model.local_table import can_update
from cm3_dist.ranking.metrics import NAMES

ID = FLOAT64 = 8
FLOAT = 4
# TorchRec's lookup of a rank's own rows sends every other rank the size of the request: three sizes and a length.
LOOKUP = 32


def step_bytes(scenario: Scenario, step: RankStep, usage: Usage) -> dict[str, float]:
    """Bytes of one rank in one step; "table lookups" are TorchRec's own."""
    ranks, sampled = scenario.ranks, scenario.mode == "sampled"
    if ranks == 1:
        return {}
    # Sampled: the sources of every layer are requested. The batch's items (with counts) and its positives always are.
    reached = step.relations if sampled else []
    requested = 2 * step.requested + step.positive_halo.received + sum(layer.halo.received for layer in reached)
    sums = 2 * summed((4 + ranks) * FLOAT64, ranks) + (summed(ID, ranks) if sampled else 0)
    if scenario.manifest.weighted:  # the weights of the step's positives, one sum per part
        sums += summed(scenario.manifest.num_parts * FLOAT64, ranks)
    looked_up = 0 if can_update(scenario.settings.tables) else len(tables(scenario.manifest, scenario.settings))
    return {
        "ids": ID * ((2 + len(reached)) * (ranks - 1) + requested),
        "planning sums": sums,
        **usage.sent,
        "dense gradients": summed((dense_weights(scenario.manifest, scenario.settings) + 2 + ranks) * FLOAT, ranks),
        "table lookups": LOOKUP * (ranks - 1) * looked_up,
    }


def evaluation_bytes(scenario: Scenario, load: RankLoad, usage: Usage) -> dict[str, float]:
    """Bytes of one rank in one evaluation: exact propagation, then its items travel to all others.

    Exact training has planned its halo; after sampled training every evaluation requests it anew.
    """
    ranks = scenario.ranks
    if ranks == 1:
        return {}
    relations = load.relations if scenario.settings.propagation.item_item_layers else load.relations[:2]
    ids = sum(ID * (ranks - 1 + relation.halo.received) for relation in relations)
    metrics = (len(NAMES) * len(scenario.settings.evaluate.ks) + 1) * FLOAT64
    finite = 2 * FLOAT  # whether users' and items' rows are finite
    return {
        "ids": ids if scenario.mode == "sampled" else 0,
        **usage.sent,
        "ranked items": gathered(load.item_rows * (scenario.widths.row * FLOAT + 1), ranks),
        "evaluation sums": summed(finite, ranks) + summed(metrics, ranks),
    }
