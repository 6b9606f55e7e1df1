"""How alike a run's items are: cosines of pairs, of the features, of the fused rows and of the final rows::

    python -m benchmarks.similarities runs/baby_calibrated runs/baby_plain --picture similarities.png

Pairs of trained items at random, and pairs of items that the item graph joins; the same pairs for every run on the same
data. A table of quantiles, and with --picture a histogram a kind of row, one curve a run, the features beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.timing import run_command
from cm3_dist.config.command_options import run_settings
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed

if TYPE_CHECKING:
    from cm3_dist.inference.trained_model import TrainedModel

PAIRS, BLOCK = 200_000, 16_384
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
JOINED = "joined by the item graph"


@dataclass(frozen=True)
class Cosines:
    """Of one kind of rows, over one kind of pairs."""

    run: str
    rows: str  # "features", "fused" or "final"
    pairs: str  # "random", or JOINED
    values: np.ndarray


def cosines_of(run: TrainedModel, seed: int = 0) -> list[Cosines]:
    """All of a run that is held by one process."""
    rng = np.random.default_rng(seed)
    trained = np.flatnonzero(run.shard.item_degree > 0)
    random = trained[rng.integers(0, len(trained), (2, PAIRS))]
    graph = run.shard.similar
    first, second = (
        np.repeat(np.arange(len(graph.indptr) - 1), np.diff(graph.indptr)),
        graph.source,
    )  # one process: local rows are global ones
    joined = np.stack([first, second])[:, (first != second) & (run.shard.item_degree[first] > 0)]
    kinds = {"random": random[:, random[0] != random[1]], JOINED: joined}
    features = run.features.gather(np.arange(run.shard.item_rows))
    rows = {
        "features": [values.float() for values in features.values()],
        "fused": [run.item_ego[:, -run.settings.model.dim :]],
        "final": [run.rows[1]],
    }
    return [
        Cosines(run.folder.name, name, kind, np.mean([_cosine(matrix.cpu(), pairs) for matrix in matrices], axis=0))
        for name, matrices in rows.items()
        for kind, pairs in kinds.items()
    ]


def _cosine(rows: Tensor, pairs: np.ndarray) -> np.ndarray:
    unit, found = torch.nn.functional.normalize(rows, dim=1), []
    for begin in range(0, pairs.shape[1], BLOCK):
        a, b = (unit[torch.from_numpy(side)] for side in pairs[:, begin : begin + BLOCK])
        found.append((a * b).sum(1).numpy())
    return np.concatenate(found) if found else np.empty(0, np.float32)


def table(found: list[Cosines]) -> str:
    """Quantiles in Markdown."""
    lines = ["| run | rows | pairs | " + " | ".join(f"{q:.0%}" for q in QUANTILES) + " |", "|---|---|---|" + "---|" * 7]
    for one in found:
        numbers = np.quantile(one.values, QUANTILES) if len(one.values) else [np.nan] * len(QUANTILES)
        lines.append(f"| {one.run} | {one.rows} | {one.pairs} | " + " | ".join(f"{x:.2f}" for x in numbers) + " |")
    return "\n".join(lines)


def draw(found: list[Cosines], picture: Path) -> None:
    """A panel a kind of rows; random pairs drawn through, joined ones dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    bins = np.linspace(-1, 1, 81)
    runs = list(dict.fromkeys(one.run for one in found))
    for axes, name in zip(figure.subplots(1, 3), ("features", "fused", "final"), strict=True):
        for one in found:
            if one.rows == name and len(one.values):
                height, _ = np.histogram(one.values, bins, density=True)
                style = "-" if one.pairs == "random" else "--"
                label = one.run if one.pairs == "random" else None
                axes.stairs(height, bins, linestyle=style, color=f"C{runs.index(one.run)}", label=label)
        axes.set(title=name, xlabel="cosine of two items")
    axes.legend(fontsize=8, frameon=False, title="dashed: joined by the item graph", title_fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def main(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="draw the histograms")] = None,
    checkpoint: Annotated[str, typer.Option(help="best, latest, or a name")] = "best",
) -> None:
    """Cosines between a run's items: of features, fused rows and final rows."""
    settings, found = [run_settings(folder, []) for folder in runs], []
    with distributed(settings[0].machine if len(settings) == 1 else Machine()) as runtime:
        from cm3_dist.inference.trained_model import TrainedModel

        for each in settings:
            found += cosines_of(TrainedModel(each, runtime, checkpoint))
    print(table(found))
    if picture is not None:
        draw(found, picture)


if __name__ == "__main__":
    run_command(main)
