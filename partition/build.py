"""`python -m partition build`: from raw files to a prepared folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from partition import stage_results as stored
from partition import steps
from partition.cut.assign import Assignment, assign_parts, chosen_method
from partition.errors import InputError
from partition.files import remove
from partition.folder.write import write_prepared
from partition.item_graph.graph import ItemGraph, Nearest, build_item_graph
from partition.options import SPECTRAL, BuildOptions, item_graph_weights
from partition.output import preparing
from partition.read.catalogue import parse_features
from partition.relational.connect import connect
from partition.resume import Work
from partition.shortage import shortage
from partition.stages import Stages
from partition.threads import count, limited
from partition.transform.dataset import Dataset
from partition.transform.reliability import reliability


def build(options: BuildOptions, stages: Stages | None = None) -> Path:
    """Prepares a data set. The same command resumes after the last finished stage if an earlier run was interrupted.

    Args:
        options: the command.
        stages: for progress; by default they are printed.

    Returns:
        The folder written, `options.output`.

    Raises:
        InputError: anything wrong with the options, the input or the output folder; nothing is written then.
    """
    stages = stages or Stages()
    # With other threads or less memory the same command goes on.
    command = options.model_dump(mode="json", exclude={"output", "overwrite", "threads", "memory"})
    files = [str(path) for _, path, _ in map(parse_features, options.features) if path is not None]
    places = [*options.input, *options.validation, *options.test, *files]
    with preparing(options.output, options.overwrite, command, places) as work, limited(options.threads):
        stages.statistics.update(work.noted())
        _prepare(options, work, stages)
    return options.output


def _prepare(options: BuildOptions, work: Work, stages: Stages) -> None:
    """All stages. Its mapped files are closed when it returns: on NFS the work folder cannot be deleted before."""
    preparation = _Preparation(options, work, stages)
    dataset = preparation.dataset()  # read, clean, split, features: `read_dataset`
    weights = item_graph_weights(options.item_graph_weight, list(dataset.features))
    training = dataset.train(work.folder)
    assignment = preparation.cut(dataset, training)  # the part of every user and item
    graph = preparation.item_graph(dataset, weights, training)  # the nearest items by features
    preparation.reliability(dataset, training)  # how well features agree with interactions
    preparation.write(dataset, graph, assignment)


def read_dataset(options: BuildOptions, folder: Path, stages: Stages) -> Dataset:
    """Everything before the cut: interactions read, cleaned and split, with their features.

    Args:
        options: the command.
        folder: for columns, ids and intermediate matrices, needed as long as the data set is used.
        stages: for progress.

    Raises:
        InputError: anything wrong with the input.
    """
    counts: dict[str, int] = {}  # dropped or merged, by reason
    with connect(options.engine, folder, options.memory, options.threads) as engine, shortage(folder):
        inputs = steps.read(options, engine, folder, stages, counts)  # tables, ids, and where features are
        cleaned = steps.clean(inputs, options.kcore, engine, folder, stages, counts)  # repeated pairs merged, k-core
        labelled = steps.label(inputs, cleaned, options, engine, folder, stages, counts)  # training, validation, test
    remove(folder / steps.LOGS)
    features = steps.load_features(inputs, cleaned, options, folder, stages, counts)  # checked, PCA
    if options.spectral:
        if SPECTRAL in features:
            message = (
                f"--spectral {options.spectral}: there is a modality {SPECTRAL!r} already; leave it out with --features"
            )
            raise InputError(message, "features.duplicate")
        features[SPECTRAL] = steps.spectral(labelled, cleaned.sizes, options.spectral, folder, stages)
    return Dataset(
        name=inputs.name,
        user_ids=cleaned.user_ids,
        item_ids=cleaned.item_ids,
        user=labelled.user,
        item=labelled.item,
        split=labelled.label,
        weight=labelled.weight,
        split_method=inputs.method.recorded,
        features=features,
        counts=counts,
        inputs=steps.digests(inputs.files, stages, count(options.threads)),
    )


class _Preparation:
    """The stages of one preparation. Results of finished stages are kept in the work folder and used again."""

    def __init__(self, options: BuildOptions, work: Work, stages: Stages) -> None:
        self._options, self._work, self._stages = options, work, stages

    def dataset(self) -> Dataset:
        """The data set, memory-mapped."""
        work, stages = self._work, self._stages
        if work.has("dataset"):
            with stages("data set", kept=True) as say:
                found = stored.read_dataset(work.folder / "dataset")
                say(f"{len(found.user):,} interactions, {len(found.user_ids):,} users, {len(found.item_ids):,} items")
            return found

        def make(folder: Path) -> None:
            folder.mkdir()
            stored.write_dataset(read_dataset(self._options, folder, stages), folder)

        path = work.result("dataset", make)
        work.note(stages.statistics)
        return stored.read_dataset(path)

    def cut(self, dataset: Dataset, training: tuple[np.ndarray, np.ndarray]) -> Assignment:
        """Part of every user and item."""
        options, work, (user, item) = self._options, self._work, training
        method = chosen_method(options.method, len(user))

        def make(path: Path) -> None:
            sizes = len(dataset.user_ids), len(dataset.item_ids)
            parts = assign_parts(user, item, *sizes, options.parts, method, options.seed, work.folder)
            stored.write_assignment(parts, path)

        with self._stages("parts", kept=work.has("parts.npz")) as say:
            found = stored.read_assignment(work.result("parts.npz", make))
            inside = found.share_inside(user, item)
            say(f"{options.parts} by {method}, {inside:.0%} of the training interactions inside one")
        work.note(self._stages.statistics)
        return found

    def item_graph(
        self, dataset: Dataset, weights: dict[str, float], training: tuple[np.ndarray, np.ndarray]
    ) -> ItemGraph:
        """The item graph; the neighbours of each modality are kept."""
        options, work = self._options, self._work

        def keep(name: str, find: Callable[[], Nearest]) -> Nearest:
            file = f"neighbours-{name}.npz"
            return stored.read_neighbours(work.result(file, lambda path: stored.write_neighbours(find(), path)))

        kept = all(work.has(f"neighbours-{name}.npz") for name, weight in weights.items() if weight)
        with self._stages("item graph", kept=kept) as say:
            graph = build_item_graph(
                {name: features.values for name, features in dataset.features.items()},
                weights,
                options.item_graph_k,
                approximate_above=options.approximate_above,
                cooccurrence=(*training, len(dataset.user_ids)) if options.cooccurrence_weight else None,
                cooccurrence_weight=options.cooccurrence_weight,
                missing=dataset.missing,
                seed=options.seed,
                threads=count(options.threads),
                keep=keep,
            )
            exactness = "exact" if graph.recall == 1 else f"recall {graph.recall:.3f}"
            say(f"{len(graph.neighbour):,} edges, {exactness}")
        return graph

    def reliability(self, dataset: Dataset, training: tuple[np.ndarray, np.ndarray]) -> None:
        """Measures the reliability of the features, for the manifest."""
        # The spectral modality is made from the interactions, so they cannot judge it.
        values = {name: features.values for name, features in dataset.features.items() if name != SPECTRAL}
        statistics = self._stages.statistics
        if not values or "reliability" in statistics:  # from an earlier run
            return
        with self._stages("similarity") as say:
            found = reliability(values, *training, self._options.seed, self._work.folder, missing=dataset.missing)
            statistics.update(found)
            alone = ", ".join(f"{name} {found[f'reliability_{name}']:.2f}" for name in values)
            say(f"reliability {found['reliability']:.2f} ({alone})")

    def write(self, dataset: Dataset, graph: ItemGraph, assignment: Assignment) -> None:
        """Writes the prepared folder."""
        options, work, statistics = self._options, self._work, self._stages.statistics
        work.note(statistics)
        with self._stages("write") as say:
            settings = options.model_dump(mode="json")
            write_prepared(
                dataset, graph, assignment, options.output, settings, statistics, work, count(options.threads)
            )
            say(str(options.output))
