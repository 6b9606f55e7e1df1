"""Collects finished runs into a Parquet table and one self-contained HTML page::

    python -m jobs.report runs/ablations
    python -m jobs.report runs/ablations runs/more --output study.html --baseline full --metric ndcg@20

The page has a leaderboard, differences from a baseline with a paired test, sensitivity, training curves, time, memory,
and every run's command.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3_dist.config.loading import load_settings
from cm3_dist.config.run_files import SETTINGS
from cm3_dist.monitoring.tensorboard import experiment
from jobs.collect import Run, by_data, collect_finished
from jobs.command import command_line
from jobs.page import render, section
from partition.errors import InputError
from partition.files import atomic_file, write_text

TENSORBOARD = "tensorboard"  # beside a sweep's run folders


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="run folders, or folders that hold some")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="the page; by default report.html in the first folder")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="the table; by default beside the page")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="configuration to compare with; by default the one closest to all others")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="metric to compare by; by default that of early stopping")] = None,
    title: Annotated[str | None, typer.Option(help="title of the page")] = None,
) -> None:
    """Collect finished runs into a table and a page."""
    found, unfinished = collect_finished(runs)
    output = output or runs[0] / "report.html"
    table = table or output.with_suffix(".parquet")
    sections = [section(data, members, metric, baseline) for data, members in by_data(found).items()]
    page = render(title or f"CM3: {', '.join(path.name for path in runs)}", sections, len(found), unfinished)
    for path in (output, table):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_table(found, table)
    write_text(output, page)
    for root in runs:
        _write_hparams_columns(root)
    print(f"{len(found)} runs, {len(unfinished)} not finished\npage   {output}\ntable  {table}")


def write_table(runs: list[Run], path: Path) -> None:
    """Writes a Parquet table with a row per run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_row(run) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: pa.array(_column([row.get(name) for row in rows])) for name in names}
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"folder": str(run.folder), "data": run.data, "command": run.command}
    row |= {f"settings.{key}": value for key, value in run.settings.items()}
    row |= {f"{split}.{name}": value for split in ("validation", "test") for name, value in run.content[split].items()}
    row |= {name: run.content[name] for name in ("best_epoch", "epochs", "steps", "world_size", "parts")}
    return row | {"train_seconds": run.train_seconds, "peak_memory_mib": run.memory}


def _column(values: list[Any]) -> list[Any]:
    """The values with one type: a list, or a setting that is a number in one run and text in another, becomes JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1 or kinds & {list, dict}:
        return [None if value is None else json.dumps(value) for value in values]
    return values


def _write_hparams_columns(root: Path) -> None:
    """Writes which columns TensorBoard's HParams tab shows for the runs below `root`: the settings that differ."""
    settings = []
    for path in sorted(root.rglob(SETTINGS)):
        try:
            settings.append(load_settings(path, []))
        except InputError:  # a run of an earlier version, with a setting that no longer exists
            continue
    if len(settings) < 2:
        return
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    shutil.rmtree(root / TENSORBOARD, ignore_errors=True)
    writer = EventFileWriter(str(root / TENSORBOARD))
    writer.add_event(Event(summary=experiment(settings)))
    writer.close()


if __name__ == "__main__":
    command_line(report)
