"""Command: the items nearest to one item, and why: cosines of each channel and of the raw features::

python -m cm3_dist.similar runs/baby --item B000J5IAQW
python -m cm3_dist.similar runs/baby --item B000J5IAQW -k 50 --by fused --json
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Show the items nearest to one item, and why: the cosine of every channel and of the raw features.")
def command(
    run: RunFolder,
    item: Annotated[str, typer.Option(metavar="ID", help="your id of an item")],
    overrides: Overrides = None,
    k: Annotated[int, typer.Option("-k", min=1, help="how many")] = 10,
    by: Annotated[
        str,
        typer.Option(metavar="all|CHANNEL", help="order by whole final rows, or by one channel (fused, a modality)"),
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON lines instead of a table")] = False,
    checkpoint: CheckpointName = "best",
) -> None:
    """Runs the command; its help text is above."""
    from cm3_dist.inference.similar_items import print_similar, similar_items
    from cm3_dist.inference.trained_model import open_model

    with open_model(run_settings(run, overrides or []), checkpoint) as model:
        found = similar_items(model, item, k, by)
    if model.runtime.rank != 0:
        return
    if as_json:
        print("\n".join(json.dumps(entry, ensure_ascii=False) for entry in found))
    else:
        print_similar(item, by, found)


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.similar")


if __name__ == "__main__":
    entry_point(main)()
