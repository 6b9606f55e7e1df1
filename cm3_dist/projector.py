"""Command: item embeddings of a finished run in TensorBoard's projector, under external ids and names::

python -m cm3_dist.projector runs/baby
python -m cm3_dist.projector runs/baby --items 2000 --names titles.csv --by fused
tensorboard --logdir runs/baby/tensorboard        # the Projector tab
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Put item rows of a finished run into TensorBoard's projector, with your ids and names.")
def command(
    run: RunFolder,
    overrides: Overrides = None,
    items: Annotated[int, typer.Option(min=3, help="at most this many, those with the most training users")] = 5_000,
    names: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="table with an item column and others to label by: title, category, ..."),
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="all|CHANNEL", help="whole final rows, or one channel of them (fused, a modality)")
    ] = "all",
    checkpoint: CheckpointName = "best",
) -> None:
    """Runs the command; its help text is above."""
    from cm3_dist.inference.projector_files import popular_items
    from cm3_dist.inference.trained_model import open_model

    with open_model(run_settings(run, overrides or []), checkpoint) as model:
        points = popular_items(model, items, by)
    if model.runtime.rank == 0:
        folder = run / "tensorboard" / "projector"
        points.write(folder, names)
        print(f"{folder}: {len(points.rows):,} items\nNext: tensorboard --logdir {folder.parent}, Projector tab")


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.projector")


if __name__ == "__main__":
    entry_point(main)()
