"""Command: top-K lists of users as Parquet or JSON lines, with external ids; docs/outputs.md describes the files::

python -m cm3_dist.recommend runs/baby --users all -k 20 --out lists.parquet
torchrun --nproc_per_node=2 -m cm3_dist.recommend runs/baby --users some.csv --items shelf.csv --out lists.jsonl
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Write the top-K lists of users as Parquet (.parquet) or JSON lines (.jsonl), with your ids.")
def command(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="FILE", help="file to write: .parquet or .jsonl")],
    overrides: Overrides = None,
    users: Annotated[
        str | None,
        typer.Option(metavar="FILE|all", help="table with a column of user ids; all (the default): every trained user"),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="length of a list")] = 20,
    exclude_seen: Annotated[
        bool,
        typer.Option("--exclude-seen/--include-seen", help="leave out a user's training items, as evaluation does"),
    ] = True,
    exclude_held_out: Annotated[
        bool, typer.Option("--exclude-held-out", help="leave out a user's validation and test items as well")
    ] = False,
    items: Annotated[
        Path | None, typer.Option(metavar="FILE", help="table with a column of item ids: recommend these only")
    ] = None,
    new_items: Annotated[
        Path | None,
        typer.Option(metavar="FILE|DIR", help="items without interactions, by their features: recommend them as well"),
    ] = None,
    new_users: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="table of user and item ids: lists for these users, not seen in training"),
    ] = None,
    checkpoint: CheckpointName = "best",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
) -> None:
    """Runs the command; its help text is above."""
    from cm3_dist.inference.recommend_lists import check_options, write_lists
    from cm3_dist.inference.trained_model import open_model

    check_options(out, users, new_users)
    with open_model(run_settings(run, overrides or []), checkpoint) as model:
        lists = write_lists(
            model,
            out,
            users=None if users in (None, "all") else Path(str(users)),
            k=k,
            exclude_seen=exclude_seen,
            exclude_held_out=exclude_held_out,
            items=items,
            new_items=new_items,
            new_users=new_users,
            overwrite=overwrite,
        )
    lists.finish()
    if model.runtime.rank == 0:
        print(lists.summary(k))


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.recommend")


if __name__ == "__main__":
    entry_point(main)()
