"""Judges a finished run: accuracy, overall and in slices, coverage, novelty and popularity bias, beside baselines::

    python -m cm3_dist.evaluate runs/baby
    python -m cm3_dist.evaluate runs/baby --by popularity --by activity --out evaluation.json
    python -m cm3_dist.evaluate runs/baby --against runs/plain          # paired bootstrap over users
    python -m cm3_dist.evaluate runs/baby --neighbours                  # does it keep each modality's neighbourhoods?
    python -m cm3_dist.evaluate runs/baby --cold                        # only items without a training interaction

docs/outputs.md defines every figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3_dist.config.command_options import CheckpointName, Overrides, RunFolder, run_settings
from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.runtime import distributed
from cm3_dist.errors import InputError

if TYPE_CHECKING:
    from cm3_dist.evaluation.protocol import Ranked, Task
    from cm3_dist.inference.trained_model import FinishedRun

BASELINES = ("popularity", "random", "ease", "item-knn")

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
    cold: Annotated[
        bool, typer.Option("--cold", help="rank only held-out items that have no training interaction")
    ] = False,
    by: Annotated[
        list[By] | None, typer.Option(help="slice by the items' popularity or the users' activity; repeatable")
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="none, or some of popularity,random,ease,item-knn; auto: popularity, and EASE or in a large catalogue "
            "item-kNN"
        ),
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
    """Command line; the help text is above."""
    settings = run_settings(run, overrides or [])
    other_settings = run_settings(against, overrides or []) if against else None
    with distributed(settings.machine) as runtime:
        from cm3_dist.distributed.collectives import on_rank_0
        from cm3_dist.evaluation.tables import show
        from cm3_dist.inference.atomic_output import new_file
        from cm3_dist.inference.trained_model import FinishedRun

        ours = FinishedRun(settings, runtime, checkpoint)
        other = FinishedRun(other_settings, runtime) if other_settings else None
        slices = [each.value for each in by or []]
        content = evaluate(
            ours,
            split.value,
            cold=cold,
            by=slices,
            baselines=baselines,
            against=other,
            resamples=resamples,
            neighbours=neighbours,
        )
        if out is not None:
            with new_file(out, runtime, overwrite) as folder:
                text = json.dumps(content, indent=1) + "\n"
                on_rank_0(runtime, lambda: (folder / out.name).write_text(text, encoding="utf-8"))
        if runtime.rank == 0:
            show(content)


def evaluate(
    run: FinishedRun,
    split: str = "test",
    *,
    cold: bool = False,
    by: Sequence[str] = (),
    baselines: str = "auto",
    against: FinishedRun | None = None,
    resamples: int = 1000,
    neighbours: bool = False,
) -> dict[str, Any]:
    """All figures as JSON types. Collective; `against` of the result is complete on rank 0.

    Raises:
        InputError: nothing to rank, an unknown or unsuitable baseline, or a run on other data.
    """
    from cm3_dist.evaluation.beyond_accuracy import exposure
    from cm3_dist.evaluation.bootstrap import paired_bootstrap
    from cm3_dist.evaluation.neighbourhood_overlap import kept_neighbours
    from cm3_dist.evaluation.protocol import rank, task
    from cm3_dist.evaluation.slices import by_activity, by_popularity

    names = _baselines(baselines, run)
    if against is not None and against.manifest.digest() != run.manifest.digest():
        raise InputError(f"{against.folder}: trained on other data than {run.folder}, so their users are not paired")
    what = task(run, split, cold)
    rankings: dict[str, Callable[[], Ranked]] = {"CM3": lambda: rank(run, what, run.rows)}
    rankings |= {name: _ranking(run, what, name) for name in names}
    if against is not None:
        rankings["other run"] = lambda: rank(against, what, against.rows)
    content: dict[str, Any] = {
        "run": str(run.folder),
        "checkpoint": run.checkpoint.name,
        "data": run.manifest.name,
        "split": split,
        "cold": cold or run.manifest.split == "cold_items",
        "candidates": int(what.is_candidate.sum()),
        "rankings": {},
    }
    ours = None
    for name, make in rankings.items():
        ranked = make()
        metrics, content["users"] = ranked.means(run)
        entry: dict[str, Any] = {"accuracy": metrics, "exposure": exposure(run, what, ranked)}
        if "popularity" in by:
            entry["by_popularity"] = by_popularity(run, what, ranked)
        if "activity" in by:
            entry["by_activity"] = by_activity(run, what, ranked)
        content["rankings"][name] = entry
        ours = ours or ranked
        if against is not None and name == "other run":
            content["against"] = {
                "run": str(against.folder),
                "checkpoint": against.checkpoint.name,
                "resamples": resamples,
                "difference": paired_bootstrap(run, ours, ranked, resamples),
            }
    if neighbours:
        content["neighbours"] = kept_neighbours(run)
    return content


def _baselines(text: str, run: FinishedRun) -> list[str]:
    from cm3_dist.evaluation.linear_baselines import EASE_ITEMS

    if text == "auto":
        return ["popularity", "ease" if run.manifest.items <= EASE_ITEMS else "item-knn"]
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in BASELINES:
            raise InputError(f"--baselines {text}: no baseline {name!r}; there are {', '.join(BASELINES)}")
    return names


def _ranking(run: FinishedRun, what: Task, name: str) -> Callable[[], Ranked]:
    from cm3_dist.evaluation.linear_baselines import ease, item_knn
    from cm3_dist.evaluation.protocol import rank

    if name == "ease":
        return lambda: ease(run, what)
    if name == "item-knn":
        return lambda: item_knn(run, what)
    return lambda: rank(run, what, run.trainer.evaluator.baseline_rows()[name])


def main() -> None:
    """Command line."""
    app(prog_name="python -m cm3_dist.evaluate")


if __name__ == "__main__":
    entry_point(main)()
