"""The way from raw files to a prepared folder: read, clean, split, features, parts, item graph, write."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.markup import escape

from partition import layout
from partition.assign import Method, assign_parts, chosen_method
from partition.catalogue import resolve
from partition.clean import evaluable, k_core, merge_duplicates, renumber
from partition.dataset import TEST, TRAIN, VALIDATION, Dataset
from partition.errors import InputError
from partition.features import load
from partition.item_graph import build_item_graph, default_weights
from partition.readers import Role, find, read_interactions
from partition.split import Method as SplitMethod
from partition.split import split
from partition.write import write_prepared


class BuildOptions(BaseModel):
    """The command line of `python -m partition build`; docs/data.md says what each option does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: list[Path] = Field(min_length=1)
    output: Path
    parts: int = Field(gt=0)
    name: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    split_column: str | None = None
    split: Literal["auto", "column", "random", "leave-last-out", "cold-items"] = "auto"
    seed: int = Field(default=2025, ge=0)
    kcore: int = Field(default=0, ge=0)
    features: list[str] = []  # NAME, or NAME=FILE[:column]
    pca: list[str] = []  # DIM, or NAME=DIM
    item_graph_k: int = Field(default=10, gt=0)
    item_graph_weight: list[str] = []  # NAME=W
    cooccurrence_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    approximate_above: int = Field(default=200_000, ge=0)
    method: Method = "auto"
    overwrite: bool = False


class Stages:
    """One line per stage, and the seconds each took."""

    def __init__(self, quiet: bool = False) -> None:
        self.statistics: dict[str, float] = {}
        self._console = Console(highlight=False, quiet=quiet)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[Callable[[str], None]]:
        """Times a stage, whose line is what the caller hands to the function it gets."""
        said: list[str] = []
        began = time.perf_counter()
        yield said.append
        seconds = time.perf_counter() - began
        self.statistics[f"seconds_{stage.replace(' ', '_')}"] = round(seconds, 3)
        self._console.print(f"{stage:<10}  {escape('; '.join(said))}  [dim]{seconds:.1f} s[/dim]", soft_wrap=True)


def build(options: BuildOptions, stages: Stages | None = None) -> Path:
    """Prepares a data set.

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
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{options.output.name}.", dir=options.output.parent) as work:
        dataset = read_dataset(options, Path(work), stages)
        weights = item_graph_weights(options.item_graph_weight, list(dataset.features))
        user, item = dataset.train()
        users, items = len(dataset.user_ids), len(dataset.item_ids)
        with stages("parts") as say:
            assignment = assign_parts(user, item, users, items, options.parts, options.method, options.seed)
            inside = np.mean(assignment.user_part[user] == assignment.item_part[item])
            method = chosen_method(options.method, len(user))
            say(f"{options.parts} by {method}, {inside:.0%} of the training interactions inside one")
        with stages("item graph") as say:
            graph = build_item_graph(
                {name: features.values for name, features in dataset.features.items()},
                weights,
                options.item_graph_k,
                approximate_above=options.approximate_above,
                cooccurrence=(user, item, users) if options.cooccurrence_weight else None,
                cooccurrence_weight=options.cooccurrence_weight,
                seed=options.seed,
            )
            exactness = "exact" if graph.recall == 1 else f"recall {graph.recall:.3f}"
            say(f"{len(graph.neighbour):,} edges, {exactness}")
        with stages("write") as say:
            write_prepared(
                dataset, graph, assignment, options.output, options.model_dump(mode="json"), stages.statistics
            )
            say(str(options.output))
    return options.output


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


def read_dataset(options: BuildOptions, work: Path, stages: Stages) -> Dataset:
    """Everything up to the features.

    Args:
        options: the command.
        work: folder for intermediate feature matrices; it has to stay as long as the data set is used.
        stages: where to report.

    Raises:
        InputError: anything wrong with the input.
    """
    given: dict[Role, str | None] = {
        "user": options.user_column,
        "item": options.item_column,
        "time": options.time_column,
        "split": options.split_column,
    }
    with stages("read") as say:
        found = find(options.input, given, options.name)
        labels: Literal["column", "auto"] | None = options.split if options.split in ("column", "auto") else None
        raw = read_interactions(found.interactions, given, labels, options.split == "leave-last-out")
        inputs = resolve(found, raw, options.features, given)
        say(f"{len(inputs.interactions):,} rows, {len(inputs.user_ids):,} users, {len(inputs.item_ids):,} items")
    user_ids, item_ids, kept = inputs.user_ids, inputs.item_ids, None
    with stages("clean") as say:
        interactions, merged = merge_duplicates(inputs.interactions, len(item_ids))
        counts = {"duplicates_merged": merged}
        if options.kcore:
            core = k_core(interactions, options.kcore)
            if not len(core):
                raise InputError(f"--kcore {options.kcore}: no interaction is left")
            (kept_users, user), (kept, item) = renumber(core.user), renumber(core.item)
            counts["kcore_dropped"] = len(interactions) - len(core)
            counts["kcore_users_dropped"] = len(user_ids) - len(kept_users)
            counts["kcore_items_dropped"] = len(item_ids) - len(kept)
            user_ids, item_ids = user_ids.take(pa.array(kept_users)), item_ids.take(pa.array(kept))
            interactions = replace(core, user=user, item=item)
        say(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
    with stages("split") as say:
        method = _method(options.split, interactions.split is not None)
        label = split(interactions, method, options.seed)
        if not (label == TRAIN).any():
            raise raw.files[0].error("the training split is empty; --split random makes one", raw.split_column)
        keep = evaluable(interactions.user, label)
        counts["users_without_training"] = int(
            (np.bincount(interactions.user[label == TRAIN], minlength=len(user_ids)) == 0).sum()
        )
        counts["heldout_dropped"] = int((~keep).sum())
        interactions, label = interactions.take(keep), label[keep]
        sizes = [f"{int((label == code).sum()):,}" for code in (TRAIN, VALIDATION, TEST)]
        say(f"{method}: training {sizes[0]}, validation {sizes[1]}, test {sizes[2]}")
        if counts["heldout_dropped"]:
            say(f"dropped {counts['heldout_dropped']:,} held-out ones of users without training")
    with stages("features") as say:
        dims = pca_dims(options.pca, list(inputs.features))
        features, shares = load(inputs.features, len(inputs.item_ids), kept, dims, work)
        stages.statistics.update(shares)
        widths = {name: (f.source_dim, f.values.shape[1]) for name, f in features.items()}
        say(", ".join(f"{n} {before}" + (f" -> {d}" if d < before else "") for n, (before, d) in widths.items()))
    with stages("digests") as say:
        digests = {_short(path, inputs.files): layout.sha256(path) for path in inputs.files}
        say(f"{len(digests)} input files")
    return Dataset(
        name=found.name,
        user_ids=user_ids,
        item_ids=item_ids,
        user=interactions.user,
        item=interactions.item,
        split=label,
        split_method=method,
        features=features,
        counts=counts,
        inputs=digests,
    )


def item_graph_weights(texts: Sequence[str], modalities: Sequence[str]) -> dict[str, float]:
    """Reads `NAME=W` for every modality; without any, the defaults of the item graph.

    Raises:
        InputError: an unknown or missing modality, a weight that is not a number of at least 0, or no weight above 0.
    """
    if not texts:
        return default_weights(modalities)
    weights = {}
    for text in texts:
        name, weight = _named_number(text, "--item-graph-weight", modalities)
        if name is None or not 0 <= weight < np.inf:
            raise InputError(f"--item-graph-weight {text}: expected NAME=W with W >= 0")
        weights[name] = weight
    missing = [name for name in modalities if name not in weights]
    if missing:
        raise InputError(f"--item-graph-weight: give one for every modality; {missing[0]!r} is missing")
    if not any(weights.values()):
        raise InputError("--item-graph-weight: at least one weight must be above 0")
    return weights


def pca_dims(texts: Sequence[str], modalities: Sequence[str]) -> dict[str, int]:
    """Reads `DIM`, for all modalities that are wider (under the name "*"), and `NAME=DIM`, for one.

    Raises:
        InputError: an unknown modality, or a number of dimensions that is not whole and positive.
    """
    dims: dict[str, int] = {}
    for text in texts:
        name, dim = _named_number(text, "--pca", modalities)
        if dim < 1 or dim != int(dim):
            raise InputError(f"--pca {text}: expected DIM or NAME=DIM, a whole number of at least 1")
        dims["*" if name is None else name] = int(dim)
    return dims


def _named_number(text: str, option: str, modalities: Sequence[str]) -> tuple[str | None, float]:
    name, equals, number = text.rpartition("=")
    if equals and name not in modalities:
        raise InputError(f"{option} {text}: no modality {name!r}; there are {', '.join(modalities)}")
    try:
        return name if equals else None, float(number)
    except ValueError:
        raise InputError(f"{option} {text}: {number!r} is not a number") from None


def _method(wanted: str, labelled: bool) -> SplitMethod:
    names: dict[str, SplitMethod] = {
        "auto": "column" if labelled else "random",
        "column": "column",
        "random": "random",
        "leave-last-out": "leave_last_out",
        "cold-items": "cold_items",
    }
    return names[wanted]


def _short(path: Path, all_paths: Sequence[Path]) -> str:
    """The file's name alone, unless another input has the same."""
    return path.name if sum(other.name == path.name for other in all_paths) == 1 else str(path)
