"""Memory of one rank by entry, from what it holds and what the dry runs of a step and an evaluation keep alive.

On the CPU everything lies on the host; on a GPU tables, encoder, operator and activations lie on the device. What NumPy
makes (the parts, planning) and what depends on values (the ranking) is counted from sizes. Mapped feature files are in
the machine's page cache, not in a rank's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cm3_dist.capacity.dry_run import Usage
from cm3_dist.capacity.scenario import RankLoad, RankStep, Scenario
from cm3_dist.model.dimensions import dense_weights
from cm3_dist.ranking.full_ranking import METRIC_BLOCK

Place = Literal["host", "device"]
Phase = Literal["always", "load", "step", "evaluation"]
INT64, INT32, FLOAT64, FLOAT, MIB = 8, 4, 8, 4, 2**20
EDGE = INT64 + FLOAT  # of a CSR matrix: index and value
PART_EDGE = INT32 + FLOAT  # of a part: source, value
# Anonymous memory of a process before it loads anything (Python, torch, TorchRec) and after its first steps (thread
# stacks, buffers of the matrix products), and DGL where neighbours are drawn. Measured.
PROCESS, DGL = 415 * MIB, 10 * MIB
# CUDA context, cuBLAS workspaces, NCCL buffers, CUDA graph pool and fragmentation: an allowance, not measured here.
CUDA_PROGRAM = 2048 * MIB
# glibc keeps freed blocks of up to 32 MiB: memory above what is alive at the peak, per byte of such blocks. Measured.
KEPT = 0.5


@dataclass(frozen=True)
class Entry:
    """One line of the memory of a rank. `load` ends before the rest of `always` exists."""

    name: str
    bytes: float
    place: Place
    phase: Phase


def rank_memory(
    scenario: Scenario, load: RankLoad, step: RankStep, usage: tuple[Usage, Usage], table_bytes: tuple[float, float]
) -> list[Entry]:
    """All entries of one rank.

    Args:
        scenario: the run.
        load, step: what the rank holds, and what a step touches.
        usage: dry runs of a step and of the final rows of an evaluation.
        table_bytes: the rank's rows and optimizer state, from TorchRec's planner.
    """
    cuda, exact = scenario.hardware.device == "cuda", scenario.mode == "exact"
    place: Place = "device" if cuda else "host"
    dense = 4 * FLOAT * dense_weights(scenario.manifest, scenario.settings)  # weights, gradients, two moments
    operator, plan, final = usage[1].operator, usage[0].plan, usage[1].live
    ranking = _ranking(scenario, load)
    evaluation = final if sum(final.values()) > sum(ranking.values()) else ranking
    items = [
        Entry("process", PROCESS + (0 if exact else DGL), "host", "always"),
        Entry("CUDA, NCCL and fragmentation (allowance)", CUDA_PROGRAM if cuda else 0, "device", "always"),
        Entry("tables", table_bytes[0], place, "always"),
        Entry("table optimizer", table_bytes[1], place, "always"),
        Entry("encoder and its optimizer", dense, place, "always"),
        Entry("features, resident", scenario.feature_bytes(load.item_rows) if exact else 0, place, "always"),
        Entry("graph: parts", _parts(load), "host", "always"),
        Entry("graph: weights", _weights(scenario, load), "host", "always"),
        # In sampled mode the exact operator is made for each evaluation, without the item graph's transpose.
        Entry("graph: operator", operator, "host", "always" if exact else "evaluation"),
        Entry("operator on the device", operator if cuda else 0, "device", "always" if exact else "evaluation"),
        Entry("positives and their order", _batches(scenario, load), "host", "always"),
        Entry("row numbers and degrees", 3 * INT64 * (load.user_rows + load.item_rows), "host", "always"),
        Entry("held-out interactions", _held_out(load), "host", "always"),
        Entry("loading the parts", _weights(scenario, load) + _loading(load, exact), "host", "load"),
        Entry("plans ahead", (scenario.settings.machine.prefetch + 2) * plan, "host", "step"),
        Entry("plan on the device", plan if cuda else 0, "device", "step"),
        Entry("planning", _planning(load, step, exact), "host", "step"),
        *(Entry(name, size, place, "step") for name, size in usage[0].live.items()),
        Entry("freed blocks that are kept", 0 if cuda else KEPT * usage[0].small, "host", "step"),
        *(Entry(f"evaluation: {name}", size, place, "evaluation") for name, size in evaluation.items()),
        Entry("freed blocks that are kept", 0 if cuda else KEPT * usage[1].small, "host", "evaluation"),
    ]
    return [item for item in items if item.bytes]


def peak(items: list[Entry], place: Place) -> float:
    """The most bytes in one place at any time."""
    total: dict[Phase, float] = {"always": 0.0, "load": 0.0, "step": 0.0, "evaluation": 0.0}
    for item in items:
        if item.place == place:
            total[item.phase] += item.bytes
    process = sum(item.bytes for item in items if item.name == "process" and item.place == place)
    return max(process + total["load"], total["always"] + max(total["step"], total["evaluation"]))


def _planning(load: RankLoad, step: RankStep, exact: bool) -> float:
    if exact:  # the random numbers of the curve parameter
        return 5 * INT64 * load.item_rows
    widest = max((layer.edges for layer in step.relations), default=0)
    return INT64 * (load.user_rows + load.item_rows) + 12 * INT64 * widest


def _parts(load: RankLoad) -> float:
    """The parts' own edges and row numbers, and the items of each user."""
    edges, starts = sum(relation.edges for relation in load.relations), 2 * (load.user_rows + load.item_rows)
    return PART_EDGE * edges + INT64 * (load.part_nodes + starts) + INT32 * load.user_from_item.edges


def _weights(scenario: Scenario, load: RankLoad) -> float:
    """The weight of every positive, and the weighted degrees of the items."""
    return FLOAT * load.user_from_item.edges + FLOAT64 * load.items if scenario.manifest.weighted else 0.0


def _loading(load: RankLoad, exact: bool) -> float:
    """All parts' edges, and one relation being sorted: its ends, their concatenation, the order and the result."""
    relations = load.relations if exact else load.relations[:1]
    edges = sorted(relation.edges for relation in relations)
    return _parts(load) + EDGE * sum(edges[:-1]) + 7 * INT64 * edges[-1]


def _batches(scenario: Scenario, load: RankLoad) -> float:
    """Every positive's user, an epoch's order, and (user, item) keys where negatives are drawn."""
    keys = 0 if scenario.settings.negatives == "in_batch" else INT64
    return (INT32 + INT64 + keys) * load.user_from_item.edges


def _held_out(load: RankLoad) -> float:
    return sum(INT64 * (2 * users + interactions) for users, interactions in load.held_out.values())


def ranked_users(scenario: Scenario, load: RankLoad, split: str) -> float:
    """Users of a rank that an evaluation ranks."""
    options, users = scenario.settings.evaluate, load.held_out[split][0]
    sample = options.users if split == "validation" else options.test_users
    return users if sample is None else min(users, sample * load.users / max(scenario.manifest.users, 1))


def _ranking(scenario: Scenario, load: RankLoad) -> dict[str, float]:
    """An evaluation after the final rows were computed."""
    options, row = scenario.settings.evaluate, FLOAT * scenario.widths.row
    ranked = max(ranked_users(scenario, load, split) for split in load.held_out)
    k, seen = max(options.ks), load.user_from_item.edges * ranked / max(load.users, 1)
    block, scored = min(options.user_block, ranked), min(options.item_block, load.item_rows)
    return {
        "final rows": row * (load.user_rows + load.item_rows),
        "ranked users": row * ranked,
        "items they have seen": 3 * INT64 * seen,
        "best items": (FLOAT + INT64) * k * ranked,
        "metrics": 8 * INT64 * k * min(ranked, METRIC_BLOCK),
        "scores": 1.5 * FLOAT * block * scored,  # and what finding the best of them takes
    }
