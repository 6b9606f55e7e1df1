"""The steps from raw files to a data set, each reported as a stage; `partition.build.read_dataset` has their order.

`folder` holds columns and intermediate matrices; it is needed as long as the results are used. `counts` collects how
much was dropped or merged, by reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from partition import columns_on_disk as blocks
from partition.errors import InputError
from partition.files import sha256
from partition.options import SPECTRAL, BuildOptions, Missing, SplitMethod, missing_choices, pca_dims
from partition.read.catalogue import Inputs, resolve
from partition.read.features import Matrices, load, missing_items
from partition.read.interactions import read_interactions
from partition.read.sources import Role, find
from partition.stages import Stages
from partition.transform.dataset import TRAIN, Features, Interactions
from partition.transform.dedup import evaluable, k_core, merge_duplicates, renumber
from partition.transform.shuffle_features import noisy_items, permute_rows
from partition.transform.spectral import spectral_features
from partition.transform.split import resolved, split


@dataclass(frozen=True)
class Cleaned:
    """Interactions after cleaning, and the users and items that remain."""

    interactions: Interactions
    user_ids: pa.Array  # [users]
    item_ids: pa.Array  # [items]
    kept: np.ndarray | None  # [items] their indices in the catalogue, ascending; None if all items remain

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of users and of items."""
        return len(self.user_ids), len(self.item_ids)


@dataclass(frozen=True)
class Labelled:
    """Interactions with their split."""

    user: np.ndarray  # [E]
    item: np.ndarray  # [E]
    label: np.ndarray  # [E] int8: TRAIN, VALIDATION, TEST
    method: SplitMethod


def read(options: BuildOptions, folder: Path, stages: Stages) -> Inputs:
    """Finds the files, reads the interactions, and numbers users and items.

    Raises:
        InputError: anything wrong with the files.
    """
    given: dict[Role, str | None] = {
        "user": options.user_column,
        "item": options.item_column,
        "time": options.time_column,
        "split": options.split_column,
    }
    with stages("read") as say:
        found = find([Path(place) for place in options.input], given, options.name)
        raw = read_interactions(found.interactions, given, options.split, folder)
        inputs = resolve(found, raw, options.features, given, folder)
        say(f"{len(inputs.interactions):,} rows, {len(inputs.user_ids):,} users, {len(inputs.item_ids):,} items")
    return inputs


def incomplete(inputs: Inputs, options: BuildOptions, matrices: Matrices, counts: dict[str, int]) -> np.ndarray | None:
    """[items] bool: the items that `--missing drop` leaves out, because features of them are missing; None for none.

    Raises:
        InputError: anything wrong with the option, or with features of a modality with that choice.
    """
    choices = missing_choices(options.missing, matrices.names)
    dropped = missing_items(matrices, choices)
    for name, choice in choices.items():
        missing = matrices[name].missing if choice == Missing.DROP else None
        if missing is not None:
            counts[f"missing_{name}"] = int(np.count_nonzero(missing))
    return dropped


def clean(
    inputs: Inputs,
    kcore: int,
    folder: Path,
    stages: Stages,
    counts: dict[str, int],
    dropped: np.ndarray | None = None,
) -> Cleaned:
    """Leaves out the items `dropped` [items], merges repeated pairs and reduces the interactions to their k-core.

    Users without any interaction left are left out as well.

    Raises:
        InputError: nothing is left.
    """
    user_ids, item_ids, kept = inputs.user_ids, inputs.item_ids, None
    with stages("clean") as say:
        interactions = inputs.interactions
        if dropped is not None:
            item = interactions.item
            interactions = interactions.select(lambda rows: ~dropped[item[rows]], folder)
            if not len(interactions):
                raise InputError("--missing drop: no interaction is left", "option.missing")
            counts["missing_interactions_dropped"] = len(inputs.interactions) - len(interactions)
        interactions, counts["duplicates_merged"] = merge_duplicates(interactions, len(item_ids), folder)
        if dropped is not None and not kcore:
            (kept_users, user), kept = renumber(interactions.user, folder), np.flatnonzero(~dropped)
            number = (np.cumsum(~dropped) - 1).astype(interactions.item.dtype)
            interactions = replace(interactions, user=user, item=blocks.mapped(number, interactions.item, folder))
            user_ids, item_ids = user_ids.take(pa.array(kept_users)), item_ids.take(pa.array(kept))
        if kcore:
            core = k_core(interactions, kcore, folder)
            if not len(core):
                raise InputError(f"--kcore {kcore}: no interaction is left", "option.kcore")
            (kept_users, user), (kept, item) = renumber(core.user, folder), renumber(core.item, folder)
            counts["kcore_dropped"] = len(interactions) - len(core)
            counts["kcore_users_dropped"] = len(user_ids) - len(kept_users)
            counts["kcore_items_dropped"] = len(item_ids) - len(kept)
            user_ids, item_ids = user_ids.take(pa.array(kept_users)), item_ids.take(pa.array(kept))
            interactions = replace(core, user=user, item=item)
        say(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
    return Cleaned(interactions, user_ids, item_ids, kept)


def label(
    inputs: Inputs, cleaned: Cleaned, options: BuildOptions, folder: Path, stages: Stages, counts: dict[str, int]
) -> Labelled:
    """Splits the interactions, and drops held-out ones of users without a training interaction.

    Raises:
        InputError: no training interaction, or too few items.
    """
    interactions = cleaned.interactions
    with stages("split") as say:
        method = resolved(options.split, interactions)
        labels = split(interactions, method, options.seed, folder)
        if not blocks.counts(labels, 3)[TRAIN]:
            message = "the training split is empty; --split random makes one"
            raise inputs.raw.files[0].error(message, inputs.raw.split_column, code="split.empty")
        keep = evaluable(interactions.user, labels, folder)
        columns = (interactions.user, interactions.item, labels)
        user, item, labels = blocks.select(columns, lambda rows: keep[rows], folder)
        counts["users_without_training"] = int((blocks.counts(user, len(cleaned.user_ids)) == 0).sum())
        counts["heldout_dropped"] = len(interactions) - len(user)
        training, validation, test = blocks.counts(labels, 3)
        say(f"{method.recorded}: training {training:,}, validation {validation:,}, test {test:,}")
        if counts["heldout_dropped"]:
            say(f"dropped {counts['heldout_dropped']:,} held-out ones of users without training")
    return Labelled(user, item, labels, method)


def load_features(
    inputs: Inputs,
    cleaned: Cleaned,
    options: BuildOptions,
    matrices: Matrices,
    folder: Path,
    stages: Stages,
    counts: dict[str, int],
) -> dict[str, Features]:
    """Loads the matrices of the remaining items, reduces them by PCA, and exchanges rows with `--noise`.

    Raises:
        InputError: anything wrong with the features.
    """
    with stages("features") as say:
        dims, choices = pca_dims(options.pca, matrices.names), missing_choices(options.missing, matrices.names)
        features, shares, missing = load(matrices, cleaned.kept, choices, dims, inputs.item_ids)
        stages.statistics.update(shares)
        counts.update(missing)
        widths = {name: (f.source_dim, f.values.shape[1]) for name, f in features.items()}
        say(", ".join(f"{name} {was}" + (f" -> {now}" if now < was else "") for name, (was, now) in widths.items()))
        for name, choice in choices.items():
            if f"missing_{name}" in counts:
                say(f"{counts[f'missing_{name}']:,} items have no {name}: {choice}")
        if options.noise:
            chosen = noisy_items(len(cleaned.item_ids), options.noise, options.seed)
            features = {
                name: permute_rows(found, chosen, options.seed, number, folder / f"{name}-noisy.npy")
                for number, (name, found) in enumerate(features.items())
            }
            counts["feature_rows_permuted"] = len(chosen)
            say(f"rows of {len(chosen):,} items permuted")
    return features


def spectral(labelled: Labelled, sizes: tuple[int, int], dim: int, folder: Path, stages: Stages) -> Features:
    """The spectral modality, from the training interactions.

    Raises:
        InputError: fewer dimensions than `dim`.
    """
    with stages("spectral") as say:
        pairs = (labelled.user, labelled.item)
        user, item = blocks.select(pairs, lambda rows: labelled.label[rows] == TRAIN, folder)
        path = folder / f"{SPECTRAL}.npy"
        np.save(path, spectral_features(user, item, *sizes, dim))
        say(f"{dim} dimensions of the training interactions")
    return Features(np.load(path, mmap_mode="r", allow_pickle=False), dim)


def digests(files: Sequence[Path], stages: Stages) -> dict[str, str]:
    """sha256 of every input file, under its name or, if several have that name, its path."""
    names = [path.name for path in files]
    with stages("digests") as say:
        found = {path.name if names.count(path.name) == 1 else str(path): sha256(path) for path in files}
        say(f"{len(found)} input files")
    return found
