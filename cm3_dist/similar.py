"""Shows the items nearest to one item, and why: the cosine of every channel and of the raw features::

python -m cm3_dist.similar runs/baby --item B000J5IAQW
python -m cm3_dist.similar runs/baby --item B000J5IAQW -k 50 --by fused --json
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import InputError

if TYPE_CHECKING:
    from cm3_dist.inference.trained_model import FinishedRun

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Show the items nearest to one item, and why: the cosine of every channel and of the raw features.")
def command(
    run: RunFolder,
    item: Annotated[str, typer.Option(metavar="ID", help="your own id of an item")],
    overrides: Overrides = None,
    k: Annotated[int, typer.Option("-k", min=1, help="how many")] = 10,
    by: Annotated[
        str,
        typer.Option(metavar="all|CHANNEL", help="order by whole final rows, or by one channel (fused, a modality)"),
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON lines instead of a table")] = False,
    checkpoint: CheckpointName = "best",
) -> None:
    """Command line; the help text is above."""
    settings = run_settings(run, overrides or [])
    with distributed(settings.machine) as runtime:
        from cm3_dist.inference.trained_model import FinishedRun

        found = similar(FinishedRun(settings, runtime, checkpoint), item, k, by)
        if runtime.rank == 0:
            if as_json:
                print("\n".join(json.dumps(entry, ensure_ascii=False) for entry in found))
            else:
                _show(item, by, found)


def similar(run: FinishedRun, item: str | int, k: int = 10, by: str = "all") -> list[dict[str, Any]]:
    """The `k` items nearest to `item`, as `cm3_dist.inference.similar_items.nearest_items` gives them. Collective.

    Raises:
        InputError: an unknown item or channel.
    """
    import pyarrow as pa

    from cm3_dist.inference.id_map import OwnIds
    from cm3_dist.inference.similar_items import ALL, nearest_items

    if by not in (ALL, *run.channels):
        raise InputError(f"--by {by}: there are {ALL}, {', '.join(run.channels)}")
    ids = OwnIds(run.shard.root, run.manifest, "item")
    if isinstance(item, str) and ids.type == pa.int64():
        if not item.lstrip("-").isdigit():
            raise InputError(f"item {item!r}: the item ids of the data are whole numbers")
        item = int(item)
    row = int(ids.rows([item])[0])
    return nearest_items(run, row, k, by)


def _show(item: str, by: str, found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    order = "the cosine of final rows" if by == "all" else f"the cosine of channel {by}"
    title = f"nearest to {item} by {order}; per channel its cosine, of the final rows and of the raw features"
    table = Table(title=title, title_justify="left")
    table.add_column("item", no_wrap=True)
    if found:
        raw = (f"raw {name}" for name in found[0]["features"])
        for name in ("cosine", *found[0]["channels"], *raw, "item graph", "interactions"):
            table.add_column(name, justify="right")
    for entry in found:
        numbers = [entry["cosine"], *entry["channels"].values(), *entry["features"].values(), entry["item_graph"]]
        table.add_row(str(entry["item"]), *(f"{number:.3f}" for number in numbers), f"{entry['train_degree']:,}")
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.similar")


if __name__ == "__main__":
    entry_point(main)()
