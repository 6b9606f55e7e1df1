"""Puts item rows of a finished run into TensorBoard's projector, under the items' own ids and names::

python -m cm3_dist.projector runs/baby
python -m cm3_dist.projector runs/baby --items 2000 --names titles.csv --by fused
tensorboard --logdir runs/baby/tensorboard        # the Projector tab
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from cm3_dist.inference.id_map import OwnIds
    from cm3_dist.inference.trained_model import FinishedRun

ALL = "all"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help="Put item rows of a finished run into TensorBoard's projector, with the items' own ids and names.")
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
    ] = ALL,
    checkpoint: CheckpointName = "best",
) -> None:
    """Command line; the help text is above."""
    settings = run_settings(run, overrides or [])
    with distributed(settings.machine) as runtime:
        from cm3_dist.inference.trained_model import FinishedRun

        finished = FinishedRun(settings, runtime, checkpoint)
        folder, count = project(finished, items, names, by)
        if runtime.rank == 0:
            print(f"{folder}: {count:,} items\nNext: tensorboard --logdir {folder.parent}, Projector tab")


def project(run: FinishedRun, items: int, names: Path | None = None, by: str = ALL) -> tuple[Path, int]:
    """Writes `tensorboard/projector` of the run, over an earlier one. Collective.

    Rank 0 holds `items` rows of every rank, not the whole catalogue.

    Returns:
        The folder, and how many items are in it.

    Raises:
        InputError: no such channel, or `names` is no table with an item column, or names no item of the data.
    """
    import numpy as np
    import torch.distributed as dist

    from cm3_dist.distributed.collectives import agree_on_error
    from cm3_dist.inference.id_map import OwnIds

    if by != ALL and by not in run.channels:
        raise InputError(f"--by {by}: there are {ALL}, {', '.join(run.channels)}")
    degree = np.where(run.shard.is_item, run.shard.item_degree, -1)
    own = np.argsort(-degree, kind="stable")[:items]
    own = own[degree[own] >= 0]
    rows = run.rows[1][own.tolist()].cpu().numpy()
    if by != ALL:
        width = rows.shape[1] // len(run.channels)
        begin = run.channels.index(by) * width
        rows = rows[:, begin : begin + width]
    mine = own + run.shard.first_item, degree[own], rows
    gathered = [mine] * run.runtime.world_size
    dist.all_gather_object(gathered, mine, group=run.runtime.control)
    row, degree, vectors = (np.concatenate([rank[index] for rank in gathered]) for index in range(3))
    kept = np.lexsort((row, -degree))[:items]
    ids = OwnIds(run.shard.root, run.manifest, "item")
    folder = run.folder / "tensorboard" / "projector"

    def write() -> None:
        if run.runtime.rank == 0:
            header, labels = _labels(ids, row[kept], degree[kept], names)
            _write(folder, vectors[kept], header, labels, f"items {by}")

    agree_on_error(run.runtime, write)
    return folder, len(kept)


def _labels(ids: OwnIds, rows: np.ndarray, degree: np.ndarray, names: Path | None) -> tuple[list[str], list[list[str]]]:
    """Column names and a line an item: what `names` knows of it, its id, its training users."""
    own = [[str(value), str(users)] for value, users in zip(ids.take(rows).to_pylist(), degree.tolist(), strict=True)]
    if names is None:
        return ["item", "training users"], own
    from cm3_dist.inference.id_tables import read_ids

    found = read_ids(names, ids)
    others = [name for name in found.file.names if name != found.column]
    if not others:
        raise found.file.error(f"has the column {found.column!r} only, and nothing to label items by")
    table = found.file.read(others, others).to_pylist()
    place = {row: line for line, row in enumerate(found.rows(ids).tolist()) if row >= 0}
    known = [place.get(row) for row in rows.tolist()]
    if not any(line is not None for line in known):
        raise found.file.error("names none of the items shown", found.column)
    words = [["?" if line is None else _word(table[line][name]) for name in others] for line in known]
    return [*others, "item", "training users"], [[*left, *right] for left, right in zip(words, own, strict=True)]


def _word(value: object) -> str:
    """A value that stays in one cell of a tab-separated file."""
    return " ".join(str("?" if value is None else value).split()) or "?"


def _write(folder: Path, vectors: np.ndarray, header: list[str], labels: list[list[str]], tag: str) -> None:
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as board:
        board.add_embedding(vectors, labels, metadata_header=header, tag=tag)
        board.add_text("items", f"{len(labels)} items, {vectors.shape[1]} numbers each")  # without events it is no run


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.projector")


if __name__ == "__main__":
    entry_point(main)()
