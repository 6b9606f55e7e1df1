"""A prediction, for people."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cm3_dist.capacity.prediction import Prediction
from cm3_dist.capacity.scenario import Plan

PHASES = {"always": "always", "load": "loading", "step": "a step", "evaluation": "evaluation"}


def show(plan: Plan, prediction: Prediction, advice: list[str]) -> None:
    """Prints the tables."""
    console, manifest = Console(width=None, highlight=False), plan.manifest
    modalities = ", ".join(f"{m.name} {m.dim} {m.dtype}" for m in manifest.modalities)
    console.print(
        f"{manifest.users:,} users, {manifest.items:,} items ({modalities}), {manifest.train:,} training interactions; "
        f"{prediction.machine.ranks} x {prediction.machine.device}, {prediction.mode} propagation, "
        f"{plan.inside:.0%} of the interactions inside a rank",
        soft_wrap=True,
    )
    console.print(_memory(prediction))
    if prediction.sent:
        console.print(_traffic(prediction))
    console.print(_times(prediction))
    lacks = prediction.short()
    if not lacks:
        console.print("fits")
        return
    for lack in lacks:
        console.print(f"does not fit: {lack}", soft_wrap=True)
    for line in advice:
        console.print(f"  {escape(line)}", soft_wrap=True)


def _memory(prediction: Prediction) -> Table:
    table = Table(title="memory of the rank that needs most", title_justify="left")
    for heading in ("what", "when", "where"):
        table.add_column(heading)
    table.add_column("size", justify="right")
    for item in prediction.memory:
        table.add_row(item.name, PHASES[item.phase], item.place, size(item.bytes))
    table.add_section()
    table.add_row("peak", "", "host", size(prediction.host))
    if prediction.device:
        table.add_row("peak", "", "device", size(prediction.device))
    table.add_row("feature files, mapped", "always", "page cache", size(prediction.mapped))
    return table


def _traffic(prediction: Prediction) -> Table:
    table = Table(title="bytes that a rank sends to others", title_justify="left")
    table.add_column("kind")
    table.add_column("a step", justify="right")
    table.add_column("an evaluation", justify="right")
    for kind in dict.fromkeys([*prediction.sent, *prediction.sent_evaluation]):
        step, evaluation = prediction.sent.get(kind, 0), prediction.sent_evaluation.get(kind, 0)
        if step or evaluation:
            table.add_row(kind, size(step) if step else "", size(evaluation) if evaluation else "")
    table.add_section()
    table.add_row("all", size(sum(prediction.sent.values())), size(sum(prediction.sent_evaluation.values())))
    return table


def _times(prediction: Prediction) -> Table:
    table = Table(title="time and disk", title_justify="left")
    table.add_column("what")
    table.add_column("expected", justify="right")
    table.add_column("of which")
    step = prediction.step
    memory = size(prediction.prepare_memory)
    kinds = ", ".join(f"{name} {time(seconds)}" for name, seconds in vars(step).items() if seconds)
    table.add_row("a step", time(prediction.step_seconds), kinds)
    table.add_row("an epoch", time(prediction.epoch_seconds), f"{prediction.steps:,} steps, its evaluation")
    table.add_row("an evaluation", time(prediction.evaluation_seconds), "")
    table.add_row("preparation", time(prediction.prepare_seconds), f"one process, two cores, {memory} of memory")
    prepared = ", ".join(f"{name} {size(found)}" for name, found in prediction.prepared.items())
    table.add_row("prepared folder", size(sum(prediction.prepared.values())), prepared)
    table.add_row("a checkpoint", size(prediction.checkpoint), f"{size(prediction.checkpoints)} for those kept")
    return table


def size(found: float) -> str:
    """In the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if found < 1024:
            return f"{found:,.0f} {unit}" if unit == "B" or found >= 100 else f"{found:,.1f} {unit}"
        found /= 1024
    return f"{found:,.1f} TiB"


def time(seconds: float) -> str:
    """Likewise."""
    for unit, limit in (("us", 1e-3), ("ms", 1.0)):
        if seconds < limit:
            return f"{seconds / limit * 1e3:.3g} {unit}"
    for unit, count in (("s", 1), ("min", 60), ("h", 3600), ("d", 86400)):
        if seconds / count < 100 or unit == "d":
            return f"{seconds / count:.3g} {unit}"
    raise AssertionError
