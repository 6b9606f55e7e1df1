"""From raw files to a clean, split data set with its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from partition import columns_on_disk as blocks
from partition.errors import InputError
from partition.files import sha256
from partition.options import BuildOptions, pca_dims
from partition.read.catalogue import resolve
from partition.read.features import load
from partition.read.sources import Role, find, read_interactions
from partition.stages import Stages
from partition.transform.dataset import SPECTRAL, TRAIN, Dataset, Features
from partition.transform.dedup import evaluable, k_core, merge_duplicates, renumber
from partition.transform.shuffle_features import noisy_items, permute_rows
from partition.transform.spectral import spectral_features
from partition.transform.split import Method, split


def read_dataset(options: BuildOptions, work: Path, stages: Stages) -> Dataset:
    """Everything up to the features.

    Args:
        options: the command.
        work: folder for columns and intermediate feature matrices; it has to stay as long as the data set is used.
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
        raw = read_interactions(found.interactions, given, labels, options.split == "leave-last-out", work)
        inputs = resolve(found, raw, options.features, given, work)
        say(f"{len(inputs.interactions):,} rows, {len(inputs.user_ids):,} users, {len(inputs.item_ids):,} items")
    user_ids, item_ids, kept = inputs.user_ids, inputs.item_ids, None
    with stages("clean") as say:
        interactions, merged = merge_duplicates(inputs.interactions, len(item_ids), work)
        counts = {"duplicates_merged": merged}
        if options.kcore:
            core = k_core(interactions, options.kcore, work)
            if not len(core):
                raise InputError(f"--kcore {options.kcore}: no interaction is left")
            (kept_users, own), (kept, other) = renumber(core.user, work), renumber(core.item, work)
            counts["kcore_dropped"] = len(interactions) - len(core)
            counts["kcore_users_dropped"] = len(user_ids) - len(kept_users)
            counts["kcore_items_dropped"] = len(item_ids) - len(kept)
            user_ids, item_ids = user_ids.take(pa.array(kept_users)), item_ids.take(pa.array(kept))
            interactions = replace(core, user=own, item=other)
        say(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
    with stages("split") as say:
        method = _method(options.split, interactions.split is not None)
        label = split(interactions, method, options.seed, work)
        if not blocks.counts(label, 3)[TRAIN]:
            raise raw.files[0].error("the training split is empty; --split random makes one", raw.split_column)
        keep = evaluable(interactions.user, label, work)
        columns = (interactions.user, interactions.item, label)
        user, item, label = blocks.select(columns, lambda rows: keep[rows], work)
        counts["users_without_training"] = int((blocks.counts(user, len(user_ids)) == 0).sum())
        counts["heldout_dropped"] = len(interactions) - len(user)
        training, validation, test = blocks.counts(label, 3)
        say(f"{method}: training {training:,}, validation {validation:,}, test {test:,}")
        if counts["heldout_dropped"]:
            say(f"dropped {counts['heldout_dropped']:,} held-out ones of users without training")
    sizes = len(user_ids), len(item_ids)
    with stages("features") as say:
        dims = pca_dims(options.pca, list(inputs.features))
        features, shares = load(inputs.features, len(inputs.item_ids), kept, dims, work)
        stages.statistics.update(shares)
        widths = {name: (f.source_dim, f.values.shape[1]) for name, f in features.items()}
        say(", ".join(f"{n} {before}" + (f" -> {d}" if d < before else "") for n, (before, d) in widths.items()))
        if options.noise:
            chosen = noisy_items(len(item_ids), options.noise, options.seed)
            features = {
                name: permute_rows(found, chosen, options.seed, number, work / f"{name}-noisy.npy")
                for number, (name, found) in enumerate(features.items())
            }
            counts["feature_rows_permuted"] = len(chosen)
            say(f"rows of {len(chosen):,} items permuted")
    if options.spectral:
        with stages("spectral") as say:
            pairs = blocks.select((user, item), lambda rows: label[rows] == TRAIN, work)
            features[SPECTRAL] = _spectral(options.spectral, features, pairs, sizes, work)
            say(f"{options.spectral} dimensions of the training interactions")
    with stages("digests") as say:
        digests = {_short(path, inputs.files): sha256(path) for path in inputs.files}
        say(f"{len(digests)} input files")
    return Dataset(
        name=found.name,
        user_ids=user_ids,
        item_ids=item_ids,
        user=user,
        item=item,
        split=label,
        split_method=method,
        features=features,
        counts=counts,
        inputs=digests,
    )


def _spectral(
    dim: int, features: dict[str, Features], pairs: Sequence[np.ndarray], sizes: tuple[int, int], work: Path
) -> Features:
    if SPECTRAL in features:
        raise InputError(f"--spectral {dim}: there is a modality {SPECTRAL!r} already; leave it out with --features")
    path = work / f"{SPECTRAL}.npy"
    user, item = pairs
    np.save(path, spectral_features(user, item, *sizes, dim))
    return Features(np.load(path, mmap_mode="r", allow_pickle=False), dim)


def _method(wanted: str, labelled: bool) -> Method:
    names: dict[str, Method] = {
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
