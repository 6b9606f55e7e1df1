"""All figures of an evaluation: the model beside baselines and another run, in slices, and beyond accuracy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cm3_dist.config.settings import Settings
from cm3_dist.errors import InputError
from cm3_dist.evaluation.beyond_accuracy import exposure
from cm3_dist.evaluation.bootstrap import paired_bootstrap
from cm3_dist.evaluation.linear_baselines import EASE_ITEMS, ease, item_knn
from cm3_dist.evaluation.neighbourhood_overlap import neighbourhood_overlap
from cm3_dist.evaluation.protocol import Ranked, Task, evaluation_task, rank_by_rows
from cm3_dist.evaluation.slices import by_activity, by_popularity
from cm3_dist.evaluation.tables import print_evaluation
from cm3_dist.inference.atomic_output import stage_file
from cm3_dist.inference.trained_model import TrainedModel, open_model

BASELINES = ("popularity", "random", "ease", "item-knn")


def report_run(
    settings: Settings,
    against: Settings | None,
    checkpoint: str,
    out: Path | None,
    *,
    overwrite: bool,
    **options: Any,
) -> None:
    """Evaluates a run, prints the figures, and writes them to `out`, if given.

    Args:
        settings: of the run.
        against: of another run, whose best checkpoint is compared.
        checkpoint: "best", "latest" or the name of a checkpoint.
        out: JSON file.
        overwrite: whether to replace `out`.
        options: of `evaluate_model`.

    Raises:
        InputError: as `evaluate_model`, or `out` exists or cannot be written.
    """
    with open_model(settings, checkpoint) as model:
        staged = None if out is None else stage_file(out, model.runtime, overwrite)
        other = None if against is None else TrainedModel(against, model.runtime)
        with nullcontext() if staged is None else staged.writing():
            content = evaluate_model(model, against=other, **options)
    if model.runtime.rank != 0:
        return
    if staged is not None:
        with staged.writing():
            (staged.folder / staged.path.name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            staged.publish()
    print_evaluation(content)


def evaluate_model(
    model: TrainedModel,
    split: str = "test",
    *,
    cold: bool = False,
    by: Sequence[str] = (),
    baselines: str = "auto",
    against: TrainedModel | None = None,
    resamples: int = 1000,
    neighbours: bool = False,
) -> dict[str, Any]:
    """All figures as JSON types. Collective; `against` of the result is complete on rank 0 only.

    Args:
        model: the model.
        split: "validation" or "test".
        cold: rank only held-out items without a training interaction.
        by: slices: "popularity" of items, "activity" of users.
        baselines: names from BASELINES, separated by commas; "none"; or "auto" (`default_baselines`).
        against: another model of the same data, compared by a paired bootstrap.
        resamples: draws of the bootstrap.
        neighbours: add the neighbourhood overlap.

    Raises:
        InputError: there is nothing to rank, a baseline is unknown or unsuitable, or `against` has other data.
    """
    if split not in model.shard.held_out:
        raise InputError(f"split {split!r}: there are {', '.join(model.shard.held_out)}", "evaluation.split")
    if unknown := set(by) - {"popularity", "activity"}:
        raise InputError(f"by {min(unknown)!r}: there are popularity, activity", "evaluation.slice")
    names = default_baselines(model) if baselines == "auto" else _baseline_names(baselines)
    if against is not None and against.manifest.digest() != model.manifest.digest():
        message = f"{against.folder}: trained on other data than {model.folder}, so their users are not paired"
        raise InputError(message, "evaluation.other-data")
    task = evaluation_task(model, split, cold)
    rankings: dict[str, Callable[[], Ranked]] = {"CM3": lambda: rank_by_rows(model, task, model.rows)}
    for name in names:
        rankings[name] = _baseline(model, task, name)
    if against is not None:
        rankings["other run"] = lambda: rank_by_rows(against, task, against.rows)
    content: dict[str, Any] = {
        "run": str(model.folder),
        "checkpoint": model.checkpoint.name,
        "data": model.manifest.name,
        "split": split,
        "cold": cold or model.manifest.split == "cold_items",
        "candidates": int(task.is_candidate.sum()),
        "rankings": {},
    }
    ours = None
    for name, compute in rankings.items():
        ranked = compute()
        ours = ours or ranked
        content["rankings"][name], content["users"] = _figures(model, task, ranked, by)
        if against is not None and name == "other run":
            content["against"] = {
                "run": str(against.folder),
                "checkpoint": against.checkpoint.name,
                "resamples": resamples,
                "difference": paired_bootstrap(model, ours, ranked, resamples),
            }
    if neighbours:
        content["neighbours"] = neighbourhood_overlap(model)
    return content


def default_baselines(model: TrainedModel) -> list[str]:
    """Popularity, and EASE up to EASE_ITEMS items; above, rank 0 says on stderr why it is popularity only."""
    if model.manifest.items <= EASE_ITEMS:
        return ["popularity", "ease"]
    if model.runtime.rank == 0:
        print(
            f"baselines: popularity only, for more than {EASE_ITEMS:,} items; --baselines popularity,item-knn adds "
            "item-kNN, which reads all training interactions on every rank",
            file=sys.stderr,
        )
    return ["popularity"]


def _baseline_names(text: str) -> list[str]:
    names = [] if text == "none" else text.split(",")
    for name in names:
        if name not in BASELINES:
            message = f"--baselines {text}: no baseline {name!r}; there are {', '.join(BASELINES)}"
            raise InputError(message, "baselines.unknown")
    return names


def _baseline(model: TrainedModel, task: Task, name: str) -> Callable[[], Ranked]:
    if name == "ease":
        return lambda: ease(model, task)
    if name == "item-knn":
        return lambda: item_knn(model, task)
    return lambda: rank_by_rows(model, task, model.evaluator.baseline_rows()[name])


def _figures(model: TrainedModel, task: Task, ranked: Ranked, by: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Figures of one ranking, and its number of users. Collective."""
    metrics, users = ranked.means(model)
    entry: dict[str, Any] = {"accuracy": metrics, "exposure": exposure(model, task, ranked)}
    if "popularity" in by:
        entry["by_popularity"] = by_popularity(model, task, ranked)
    if "activity" in by:
        entry["by_activity"] = by_activity(model, task, ranked)
    return entry, users
