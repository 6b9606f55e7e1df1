"""A prediction as tables."""

from __future__ import annotations

from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cm3_dist.capacity.prediction import Prediction
from cm3_dist.capacity.scenario import Scenario

PHASES = {"always": "always", "load": "loading", "step": "a step", "evaluation": "evaluation"}


def show(scenario: Scenario, prediction: Prediction, advice: list[str]) -> None:
    """Prints the tables."""
    console, manifest = Console(width=None, highlight=False), scenario.manifest
    modalities = ", ".join(f"{m.name} {m.dim} {m.dtype}" for m in manifest.modalities)
    console.print(
        f"{manifest.users:,} users, {manifest.items:,} items ({modalities}), {manifest.train:,} training interactions; "
        f"{scenario.ranks} x {scenario.hardware.device}, {prediction.mode} propagation, "
        f"{scenario.inside:.0%} of the interactions inside a rank",
        soft_wrap=True,
    )
    for table in (_memory(prediction), _traffic(prediction), _times(prediction)):
        if table.row_count:
            console.print(table)
    lacks = prediction.short()
    if not lacks:
        console.print("fits")
    for lack in lacks:
        console.print(f"does not fit: {lack}", soft_wrap=True)
    for line in advice:
        console.print(f"  {escape(line)}", soft_wrap=True)


def _table(title: str, *columns: tuple[str, Literal["left", "right"]]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading, justify in columns:
        table.add_column(heading, justify=justify)
    return table


def _memory(prediction: Prediction) -> Table:
    title = "memory of the rank that needs most"
    table = _table(title, ("what", "left"), ("when", "left"), ("where", "left"), ("size", "right"))
    for item in prediction.memory:
        table.add_row(item.name, PHASES[item.phase], item.place, size(item.bytes))
    table.add_section()
    table.add_row("peak", "", "host", size(prediction.host))
    if prediction.device:
        table.add_row("peak", "", "device", size(prediction.device))
    table.add_row("feature files, mapped", "always", "page cache", size(prediction.mapped))
    return table


def _traffic(prediction: Prediction) -> Table:
    step, evaluation = prediction.sent, prediction.sent_evaluation
    title = "bytes that a rank sends to others"
    table = _table(title, ("kind", "left"), ("a step", "right"), ("an evaluation", "right"))
    for kind in step | evaluation:
        found = [sent.get(kind, 0) for sent in (step, evaluation)]
        if any(found):
            table.add_row(kind, *(size(count) if count else "" for count in found))
    if table.row_count:
        table.add_section()
        table.add_row("all", size(sum(step.values())), size(sum(evaluation.values())))
    return table


def _times(prediction: Prediction) -> Table:
    table = _table("time and disk", ("what", "left"), ("expected", "right"), ("of which", "left"))
    memory = size(prediction.prepare_memory)
    kinds = ", ".join(f"{name} {duration(seconds)}" for name, seconds in vars(prediction.step).items() if seconds)
    table.add_row("a step", duration(prediction.step_seconds), kinds)
    table.add_row("an epoch", duration(prediction.epoch_seconds), f"{prediction.steps:,} steps, its evaluation")
    table.add_row("an evaluation", duration(prediction.evaluation_seconds), "")
    table.add_row("preparation", duration(prediction.prepare_seconds), f"one process, two cores, {memory} of memory")
    prepared = ", ".join(f"{name} {size(found)}" for name, found in prediction.prepared.items())
    table.add_row("prepared folder", size(sum(prediction.prepared.values())), prepared)
    table.add_row("a checkpoint", size(prediction.checkpoint), f"{size(prediction.checkpoints)} for those kept")
    return table


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in the unit that fits."""
    for unit, length, limit in (
        ("us", 1e-6, 1e-3),
        ("ms", 1e-3, 1),
        ("s", 1, 100),
        ("min", 60, 6e3),
        ("h", 3600, 36e4),
    ):
        if seconds < limit:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"
