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

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.collectives import agree_on_error
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import InputError

if TYPE_CHECKING:
    from cm3_dist.inference.top_k_lists import Catalogue
    from cm3_dist.inference.trained_model import FinishedRun

FORMATS = (".parquet", ".jsonl")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Write the top-K lists of users as Parquet (.parquet) or JSON lines (.jsonl), with your own ids.")
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
        typer.Option(metavar="FILE", help="table of user and item ids: lists for these users, whom training never saw"),
    ] = None,
    checkpoint: CheckpointName = "best",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
) -> None:
    """Command line; the help text is above."""
    if out.suffix not in FORMATS:
        raise InputError(f"{out}: unknown extension; lists are written as {' or '.join(FORMATS)}")
    if users is not None and new_users is not None:
        raise InputError("--users and --new-users: ask for one of them at a time")
    settings = run_settings(run, overrides or [])
    with distributed(settings.machine) as runtime:
        from cm3_dist.inference.trained_model import FinishedRun

        finished = FinishedRun(settings, runtime, checkpoint)
        counts = recommend(
            finished,
            out,
            users=None if users in (None, "all") else Path(users),
            k=k,
            exclude_seen=exclude_seen,
            exclude_held_out=exclude_held_out,
            items=items,
            new_items=new_items,
            new_users=new_users,
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
    new_items: Path | None = None,
    new_users: Path | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes `out`, users in the order of the prepared folder, new ones in that of their file. Collective.

    Returns how many users, entries and, left out, untrained users. `cm3_dist.inference.cold_start`
    describes the rows of new items and new users.

    Raises:
        InputError: an unknown id, by file and row, a list file that cannot be read, or `out` cannot be written.
    """
    import numpy as np
    import torch
    import torch.distributed as dist
    from tqdm import tqdm

    from cm3_dist.distributed.collectives import everywhere, on_rank_0
    from cm3_dist.inference.atomic_output import new_file
    from cm3_dist.inference.cold_start_inputs import read_new_users
    from cm3_dist.inference.list_writers import WRITERS, Writer, join
    from cm3_dist.inference.top_k_lists import new_user_lists, trained_users, user_lists

    runtime = run.runtime
    with new_file(out, runtime, overwrite) as folder:
        catalogue = candidates(run, items, new_items)
        untrained = np.empty(0, np.int64)
        if new_users is not None:
            ids = catalogue.new.ids if catalogue.new else None
            strangers = agree_on_error(runtime, lambda: read_new_users(new_users, run, ids))
            total = len(strangers.ids)
            blocks = new_user_lists(run, strangers, catalogue, k, seen=exclude_seen)
        else:
            rows = agree_on_error(runtime, lambda: known_rows(run, "user", users))
            known, untrained = trained_users(run, rows)
            total = len(known)
            blocks = user_lists(run, known, catalogue, k, seen=exclude_seen, held_out=exclude_held_out)
        own = folder / f"{runtime.rank:05d}{out.suffix}"
        quiet = None if runtime.rank == 0 else True
        done, entries = 0, 0
        with tqdm(total=total, desc="recommend", unit="user", disable=quiet, leave=False) as bar:
            writer: Writer = agree_on_error(runtime, lambda: WRITERS[out.suffix](own))
            for block in blocks:
                everywhere(runtime, partial(writer.add, block))
                done, entries = done + len(block.users), entries + len(block.scores)
                bar.update(len(block.users))
            everywhere(runtime, writer.close)
        parts = [folder / f"{rank:05d}{out.suffix}" for rank in range(runtime.world_size)]
        on_rank_0(runtime, lambda: join(parts, folder / out.name))
    counts = torch.tensor([done, entries, len(untrained)])
    dist.all_reduce(counts, group=runtime.control)
    return dict(zip(("users", "entries", "untrained"), counts.tolist(), strict=True))


def candidates(run: FinishedRun, items: Path | None, new_items: Path | None) -> Catalogue:
    """What may be recommended: the catalogue and the new items, or those of them that the file `items` names.

    Collective.

    Raises:
        InputError: an unknown item, or anything wrong with the new ones.
    """
    import tempfile

    import numpy as np

    from cm3_dist.inference.cold_start import place_items
    from cm3_dist.inference.cold_start_inputs import read_new_items, rows_with_new
    from cm3_dist.inference.id_map import OwnIds
    from cm3_dist.inference.id_tables import read_ids
    from cm3_dist.inference.top_k_lists import Catalogue, chosen_items

    runtime, new = run.runtime, None
    if new_items is not None:
        with tempfile.TemporaryDirectory() as work:
            ids, features = agree_on_error(runtime, lambda: read_new_items(new_items, run, Path(work)))
            new = place_items(run, ids, features)
    if items is None:
        return Catalogue(chosen_items(run, None), new)

    def read() -> np.ndarray:
        listed = read_ids(items, OwnIds(run.shard.root, run.manifest, "item"))
        return rows_with_new(run, listed, None if new is None else new.ids)

    rows = agree_on_error(runtime, read)
    known = rows < run.manifest.item_rows
    chosen = None if new is None else new.only(rows[~known] - run.manifest.item_rows, run)
    return Catalogue(chosen_items(run, rows[known]), chosen)


def known_rows(run: FinishedRun, kind: Any, path: Path | None) -> Any:
    """Global rows [n] of the ids in a file, None without one.

    Raises:
        InputError: an id that the data does not have, by file and row.
    """
    import numpy as np

    from cm3_dist.inference.id_map import OwnIds
    from cm3_dist.inference.id_tables import read_ids

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
    app(prog_name="python -m cm3_dist.recommend")


if __name__ == "__main__":
    entry_point(main)()
