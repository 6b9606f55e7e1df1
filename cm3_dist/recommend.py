"""Writes the top-K lists of users as Parquet or JSON lines, with the users' and items' own ids::

    python -m cm3_dist.recommend runs/baby --users all -k 20 --out lists.parquet
    torchrun --nproc_per_node=2 -m cm3_dist.recommend runs/baby --users some.csv --items shelf.csv --out lists.jsonl

The ranking is that of evaluation; docs/outputs.md describes the files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3_dist.cli import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.runtime import agree_on_error, distributed, entry_point
from partition.errors import InputError

if TYPE_CHECKING:
    from cm3_dist.finished import FinishedRun

FORMATS = (".parquet", ".jsonl")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Write the top-K lists of users as Parquet (.parquet) or JSON lines (.jsonl), with your own ids.")
def command(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="FILE", help="file to write: .parquet or .jsonl")],
    overrides: Overrides = None,
    users: Annotated[
        str, typer.Option(metavar="FILE|all", help="table with a column of user ids; all: every trained user")
    ] = "all",
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
    checkpoint: CheckpointName = "best",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
) -> None:
    """Command line; the help text is above."""
    if out.suffix not in FORMATS:
        raise InputError(f"{out}: unknown extension; lists are written as {' or '.join(FORMATS)}")
    settings = run_settings(run, overrides or [])
    with distributed(settings.machine) as runtime:
        from cm3_dist.finished import FinishedRun

        finished = FinishedRun(settings, runtime, checkpoint)
        counts = recommend(
            finished,
            out,
            users=None if users == "all" else Path(users),
            k=k,
            exclude_seen=exclude_seen,
            exclude_held_out=exclude_held_out,
            items=items,
            overwrite=overwrite,
        )
        if runtime.rank == 0:
            print(f"{out}: top {k} of {counts['users']:,} users, {counts['entries']:,} entries")
            if counts["untrained"]:
                print(
                    f"left out: {counts['untrained']:,} users without a training interaction, whose rows mean nothing"
                )


def recommend(
    run: FinishedRun,
    out: Path,
    *,
    users: Path | None = None,
    k: int = 20,
    exclude_seen: bool = True,
    exclude_held_out: bool = False,
    items: Path | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes `out`, users in the order of the prepared folder. Collective. Returns how many of what.

    Raises:
        InputError: an unknown id, by file and row, a list file that cannot be read, or `out` cannot be written.
    """
    import torch
    import torch.distributed as dist
    from tqdm import tqdm

    from cm3_dist.list_files import WRITERS, Writer, join
    from cm3_dist.lists import chosen_items, trained_users, user_lists
    from cm3_dist.output import everywhere, new_file, on_rank_0

    runtime = run.runtime
    with new_file(out, runtime, overwrite) as folder:
        user_rows = agree_on_error(runtime, lambda: known_rows(run, "user", users))
        item_rows = agree_on_error(runtime, lambda: known_rows(run, "item", items))
        known, untrained = trained_users(run, user_rows)
        candidates = chosen_items(run, item_rows)
        blocks = user_lists(run, known, candidates, k, seen=exclude_seen, held_out=exclude_held_out)
        own = folder / f"{runtime.rank:05d}{out.suffix}"
        quiet = None if runtime.rank == 0 else True
        entries = 0
        with tqdm(total=len(known), desc="recommend", unit="user", disable=quiet, leave=False) as bar:
            writer: Writer = agree_on_error(runtime, lambda: WRITERS[out.suffix](own))
            for block in blocks:
                everywhere(runtime, partial(writer.add, block))
                entries += len(block.scores)
                bar.update(len(block.users))
            everywhere(runtime, writer.close)
        parts = [folder / f"{rank:05d}{out.suffix}" for rank in range(runtime.world_size)]
        on_rank_0(runtime, lambda: join(parts, folder / out.name))
    counts = torch.tensor([len(known), entries, len(untrained)])
    dist.all_reduce(counts, group=runtime.control)
    return dict(zip(("users", "entries", "untrained"), counts.tolist(), strict=True))


def known_rows(run: FinishedRun, kind: Any, path: Path | None) -> Any:
    """Global rows [n] of the ids in a file, None without one.

    Raises:
        InputError: an id that the data does not have, by file and row.
    """
    import numpy as np

    from cm3_dist.id_files import read_ids
    from cm3_dist.own_ids import OwnIds

    if path is None:
        return None
    own = OwnIds(run.shard.root, run.manifest, kind)
    listed = read_ids(path, own)
    rows = listed.rows(own)
    if (rows < 0).any():
        raise listed.unknown(int(np.argmax(rows < 0)), kind)
    return rows


def main() -> None:
    """Command line."""
    app(prog_name="cm3_dist.recommend")


if __name__ == "__main__":
    entry_point(main)()
