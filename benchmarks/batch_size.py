"""Batch size against quality and time: validation Recall@20 after every epoch, with rates that grow with the batch::

    python -m benchmarks.batch_size --prepared prepared/baby --json batch.json --plot docs/images/batch_size.png

Rates are those of batch 2048 times the square root of the batch's ratio to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.against_plain import run_epoch, trainer_for
from benchmarks.timing import run_command, write_json

BASE = 2048
TABLES, DENSE = 0.03, 1e-3  # rates at batch 2048


def curve(prepared: Path, batch: int, seconds: float, threads: int) -> list[tuple[float, float]]:
    """(seconds of training so far, validation Recall@20) after every epoch."""
    factor = (batch / BASE) ** 0.5
    rates = f"tables.lr={TABLES * factor}", f"dense.lr={DENSE * factor}"
    points: list[tuple[float, float]] = []
    trained, epoch = 0.0, 0
    with trainer_for(prepared, threads, f"train.batch_size={batch}", *rates) as (trainer, _):
        while trained < seconds:
            trained += run_epoch(trainer, epoch)
            recall = trainer.evaluator.rank(trainer.final_rows(), "validation")["recall@20"]
            points.append((trained, recall))
            print(f"batch {batch:>6,}  epoch {epoch}  {trained:6.1f} s  recall@20 {recall:.4f}", flush=True)
            epoch += 1
    return points


def draw(curves: dict[int, list[tuple[float, float]]], path: Path) -> None:
    """Recall over seconds of training, a line a batch size; a dot an epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for batch, points in curves.items():
        panel.plot(*zip(*points, strict=True), "o-", label=f"batch {batch:,}")
    panel.set(xscale="log", xlabel="seconds of training", ylabel="validation Recall@20")
    panel.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    panel.set_xticks([], minor=True)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(
    prepared: Annotated[Path, typer.Option(help="prepared folder")] = Path("prepared/baby"),
    batches: Annotated[list[int] | None, typer.Option("--batch", help="batch sizes; may be repeated")] = None,
    seconds: Annotated[float, typer.Option(help="how long to train with each of them")] = 60,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
    output: Annotated[Path | None, typer.Option("--json", help="write the curves there")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw them there, as PNG")] = None,
) -> None:
    """Measure what a larger batch costs in quality and brings in time."""
    curves: dict[int, list[tuple[float, float]]] = {}
    for batch in batches or [1024, 2048, 4096, 8192, 16384]:
        curves[batch] = curve(prepared, batch, seconds, threads)
    write_json(curves, output)
    if plot is not None:
        draw(curves, plot)


if __name__ == "__main__":
    run_command(main)
