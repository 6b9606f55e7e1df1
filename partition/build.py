"""The way from raw files to a prepared folder: data set, parts, item graph, write; each stage done once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from partition import columns_on_disk as blocks
from partition import stage_results as stored
from partition.cut.assign import Assignment, assign_parts, chosen_method
from partition.errors import InputError
from partition.folder import layout
from partition.folder.write import write_prepared
from partition.item_graph.graph import ItemGraph, Nearest, build_item_graph
from partition.options import BuildOptions, item_graph_weights
from partition.resume import Work, work_folder
from partition.stages import Stages
from partition.transform.dataset import SPECTRAL, Dataset
from partition.transform.ingest import read_dataset
from partition.transform.reliability import reliability


def build(options: BuildOptions, stages: Stages | None = None) -> Path:
    """Prepares a data set.

    Stages that an earlier run of the same command finished before it was cut off are not done again.

    Args:
        options: the command.
        stages: where to report; by default to stdout.

    Returns:
        The folder written, `options.output`.

    Raises:
        InputError: anything wrong with the options, the input or the output folder; nothing is written then.
    """
    check_output(options.output, options.overwrite)
    stages = stages or Stages()
    for path in options.input:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    command = options.model_dump(mode="json", exclude={"output", "overwrite"})
    with work_folder(options.output, command, options.input) as work:
        check_output(options.output, options.overwrite)  # again: the folder may have been put back meanwhile
        stages.statistics.update(work.noted())
        dataset = _dataset(options, work, stages)
        weights = item_graph_weights(options.item_graph_weight, list(dataset.features))
        user, item = dataset.train(work.folder)
        assignment = _assignment(options, dataset, user, item, work, stages)
        graph = _item_graph(options, dataset, weights, user, item, work, stages)
        _reliability(options, dataset, user, item, work, stages)
        work.note(stages.statistics)
        with stages("write") as say:
            settings = options.model_dump(mode="json")
            write_prepared(dataset, graph, assignment, options.output, settings, stages.statistics, work)
            say(str(options.output))
    return options.output


def _dataset(options: BuildOptions, work: Work, stages: Stages) -> Dataset:
    """Read, cleaned, split; memory-mapped."""
    if work.has("dataset"):
        with stages("data set", kept=True) as say:
            dataset = stored.read_dataset(work.folder / "dataset")
            say(f"{len(dataset.user):,} interactions, {len(dataset.user_ids):,} users, {len(dataset.item_ids):,} items")
        return dataset

    def read(folder: Path) -> None:
        folder.mkdir()
        stored.write_dataset(read_dataset(options, folder, stages), folder)

    place = work.result("dataset", read)
    work.note(stages.statistics)
    return stored.read_dataset(place)


def _assignment(
    options: BuildOptions, dataset: Dataset, user: np.ndarray, item: np.ndarray, work: Work, stages: Stages
) -> Assignment:
    sizes = len(dataset.user_ids), len(dataset.item_ids)

    def cut(path: Path) -> None:
        parts = assign_parts(user, item, *sizes, options.parts, options.method, options.seed, work.folder)
        stored.write_assignment(parts, path)

    with stages("parts", kept=work.has("parts.npz")) as say:
        assignment = stored.read_assignment(work.result("parts.npz", cut))
        inside = _inside(assignment, user, item)
        method = chosen_method(options.method, len(user))
        say(f"{options.parts} by {method}, {inside:.0%} of the training interactions inside one")
    work.note(stages.statistics)
    return assignment


def _inside(assignment: Assignment, user: np.ndarray, item: np.ndarray) -> float:
    same = (assignment.user_part[user[rows]] == assignment.item_part[item[rows]] for rows in blocks.slices(len(user)))
    return sum(int(np.count_nonzero(block)) for block in same) / len(user)


def _item_graph(
    options: BuildOptions,
    dataset: Dataset,
    weights: dict[str, float],
    user: np.ndarray,
    item: np.ndarray,
    work: Work,
    stages: Stages,
) -> ItemGraph:
    def keep(name: str, find: Callable[[], Nearest]) -> Nearest:
        file = f"neighbours-{name}.npz"
        return stored.read_neighbours(work.result(file, lambda path: stored.write_neighbours(find(), path)))

    kept = all(work.has(f"neighbours-{name}.npz") for name, weight in weights.items() if weight)
    with stages("item graph", kept=kept) as say:
        graph = build_item_graph(
            {name: features.values for name, features in dataset.features.items()},
            weights,
            options.item_graph_k,
            approximate_above=options.approximate_above,
            cooccurrence=(user, item, len(dataset.user_ids)) if options.cooccurrence_weight else None,
            cooccurrence_weight=options.cooccurrence_weight,
            seed=options.seed,
            keep=keep,
        )
        exactness = "exact" if graph.recall == 1 else f"recall {graph.recall:.3f}"
        say(f"{len(graph.neighbour):,} edges, {exactness}")
    return graph


def _reliability(
    options: BuildOptions, dataset: Dataset, user: np.ndarray, item: np.ndarray, work: Work, stages: Stages
) -> None:
    # What is made of the interactions cannot be judged by them.
    values = {name: features.values for name, features in dataset.features.items() if name != SPECTRAL}
    if not values or "reliability" in stages.statistics:  # of an earlier run
        return
    with stages("similarity") as say:
        found = reliability(values, user, item, options.seed, work.folder)
        stages.statistics.update(found)
        alone = ", ".join(f"{name} {found[f'reliability_{name}']:.2f}" for name in values)
        say(f"reliability {found['reliability']:.2f} ({alone})")


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses a place where something lies that is not to be replaced.

    Raises:
        InputError: a prepared folder without `overwrite`, or anything else that is not an empty folder.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / layout.MANIFEST).is_file():
        raise InputError(f"{output}: exists and is not a prepared folder; choose another --output")
    if not overwrite:
        raise InputError(f"{output}: exists already; add --overwrite to replace it")
