"""Command: judges a run: accuracy, coverage, novelty, popularity bias, in slices, beside baselines (docs/outputs.md)::

python -m cm3_dist.evaluate runs/baby --by popularity --against runs/plain --out evaluation.json
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Split(str, Enum):
    """Choices of `--split`."""

    validation = "validation"
    test = "test"


class By(str, Enum):
    """Choices of `--by`."""

    popularity = "popularity"
    activity = "activity"


@app.command(help="Judge a finished run: accuracy, slices, coverage, novelty, popularity bias, beside baselines.")
def command(
    run: RunFolder,
    overrides: Overrides = None,
    split: Annotated[Split, typer.Option(help="held-out interactions to rank")] = Split.test,
    cold: Annotated[bool, typer.Option("--cold", help="rank only items without a training interaction")] = False,
    by: Annotated[list[By] | None, typer.Option(help="slice by item popularity or user activity; repeatable")] = None,
    baselines: Annotated[
        str, typer.Option(help="none, auto (docs/outputs.md), or some of popularity,random,ease,item-knn")
    ] = "auto",
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="another run on the same data: paired bootstrap over users")
    ] = None,
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="how many of an item's 10 nearest of each modality its rows keep")
    ] = False,
    resamples: Annotated[int, typer.Option(min=100, help="draws of the bootstrap")] = 1000,
    checkpoint: CheckpointName = "best",
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="write all figures as JSON")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
) -> None:
    """Runs the command; its help text is above."""
    from cm3_dist.evaluation.report import report_run

    report_run(
        run_settings(run, overrides or []),
        run_settings(against, overrides or []) if against else None,
        checkpoint,
        out,
        overwrite=overwrite,
        split=split.value,
        cold=cold,
        by=[each.value for each in by or []],
        baselines=baselines,
        resamples=resamples,
        neighbours=neighbours,
    )


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.evaluate")


if __name__ == "__main__":
    entry_point(main)()
