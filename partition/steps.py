"""The steps from raw files to a data set, each reported as a stage; `partition.build.read_dataset` has their order.

`folder` holds columns and intermediate matrices; it is needed as long as the results are used. `counts` collects how
much was dropped or merged, by reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

from partition import columns_on_disk as blocks
from partition.options import SPECTRAL, BuildOptions, Missing, SplitMethod, missing_choices, pca_dims
from partition.read.catalogue import Catalogue, external_ids, resolve
from partition.read.feature_sources import MatrixFile
from partition.read.features import Matrices, load, missing_items
from partition.read.ids import are_numbers
from partition.read.places import Place
from partition.read.sources import find
from partition.read.table_file import TableFile
from partition.read.usage import report
from partition.relational.chain import Numbered, number
from partition.relational.clean import Pairs, k_core, merged
from partition.relational.engine import Engine
from partition.relational.export import column, save_ids, write_columns, write_ids
from partition.relational.logs import chosen_method, event_weights, given_columns, id_kinds, open_logs
from partition.relational.split import divide, evaluable
from partition.relational.where import Where
from partition.stages import Stages
from partition.threads import count, each
from partition.transform.dataset import TEST, TRAIN, VALIDATION, Features
from partition.transform.shuffle_features import noisy_items, permute_rows
from partition.transform.spectral import spectral_features

LOGS = "logs"  # folder of the logs that the engine cannot read as they are


@dataclass(frozen=True)
class Inputs:
    """Everything that is read except the values of the features."""

    name: str  # of the data set
    method: SplitMethod
    split_column: str | None  # its name in the first log, if the split is by column
    first: TableFile  # the first log
    dated: bool  # times are microseconds since 1970
    numbered: Numbered  # the interactions
    mapping: TableFile | None  # external ids of the users
    catalogue: Catalogue
    matrices: Matrices  # of all items of the catalogue
    remaining: np.ndarray | None  # [items] indices in the catalogue, ascending, of `numbered.items`; None for all
    files: list[Place]  # all that were read


@dataclass(frozen=True)
class Cleaned:
    """Interactions after cleaning, and the users and items that remain."""

    pairs: Pairs
    user_ids: pa.Array  # [users]
    item_ids: pa.Array  # [items]
    kept: np.ndarray | None  # [items] their indices in the catalogue, ascending; None if all items remain

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of users and of items."""
        return len(self.user_ids), len(self.item_ids)


@dataclass(frozen=True)
class Labelled:
    """Interactions with their split, sorted by (user, item)."""

    user: np.ndarray  # [E] int32 or int64
    item: np.ndarray  # [E] int32 or int64
    label: np.ndarray  # [E] int8: TRAIN, VALIDATION, TEST
    weight: np.ndarray | None  # [E] float32


def read(options: BuildOptions, engine: Engine, folder: Path, stages: Stages, counts: dict[str, int]) -> Inputs:
    """Finds the files, reads the interactions, and numbers users and items.

    Raises:
        InputError: anything wrong with the files.
    """
    given = given_columns(options)
    with stages("read") as say:
        where = None if options.where is None else Where(options.where, engine)
        weights = event_weights(options)
        found = find(options.input, given, options.name, options.validation, options.test)
        method = chosen_method(options, found)
        logs = open_logs(found, method, options, where, folder / LOGS)
        catalogue = resolve(found, id_kinds(logs, "item"), options.features, given)
        text = {"user": not are_numbers(id_kinds(logs, "user")), "item": not pa.types.is_integer(catalogue.keys.type)}
        matrices = Matrices(catalogue.features, len(catalogue.ids), folder)
        dropped = incomplete(options, matrices, counts)
        numbered = number(engine, logs, text, catalogue, options, where, weights, folder, counts, dropped)
        say(f"{numbered.count:,} rows, {numbered.users.count:,} users, {numbered.item_count:,} items")
    mapping = found.mapping.get("user")
    used: dict[TableFile, list[str]] = {own.log.file: [*own.roles.values(), *own.named] for own in logs}
    used |= ({} if mapping is None else {mapping: list(mapping.names)}) | catalogue.used
    sources = [source for source in catalogue.features.values() if isinstance(source, MatrixFile)]
    for line in report(found, used, [source.path for source in sources]):
        stages.note(line)
    read = [own.log.file.place for own in logs] + ([] if mapping is None else [mapping.place])
    return Inputs(
        name=found.name,
        method=method,
        split_column=logs[0].roles.get("split"),
        first=logs[0].log.file,
        dated=logs[0].log.dated,
        numbered=numbered,
        mapping=mapping,
        catalogue=catalogue,
        matrices=matrices,
        remaining=None if dropped is None else np.flatnonzero(~dropped),
        files=list(dict.fromkeys([*read, *catalogue.files])),
    )


def incomplete(options: BuildOptions, matrices: Matrices, counts: dict[str, int]) -> np.ndarray | None:
    """[items] bool: the items that `--missing drop` leaves out, because features of them are missing; None for none.

    Raises:
        InputError: anything wrong with the option, or with features of a modality with that choice.
    """
    choices = missing_choices(options.missing, matrices.names)
    for name, choice in choices.items():
        missing = matrices[name].missing if choice == Missing.DROP else None
        if missing is not None:
            counts[f"missing_{name}"] = int(np.count_nonzero(missing))
    return missing_items(matrices, choices)


def clean(inputs: Inputs, kcore: int, engine: Engine, folder: Path, stages: Stages, counts: dict[str, int]) -> Cleaned:
    """Merges repeated pairs and reduces the interactions to their k-core.

    Raises:
        InputError: the core is empty.
    """
    numbered, catalogue = inputs.numbered, inputs.catalogue
    with stages("clean") as say:
        pairs = merged(engine, numbered.rows, numbered.users, numbered.items, numbered.item_count)
        counts["duplicates_merged"] = numbered.count - pairs.count
        kept = inputs.remaining
        item_ids = catalogue.ids if kept is None else catalogue.ids.take(pa.array(kept))
        if kcore:
            core = k_core(engine, pairs, kcore)
            assert core.items is not None
            old = column(engine, core.items.order_by("number"), "old")
            item_ids, kept = item_ids.take(pa.array(old)), old if kept is None else kept[old]
            counts["kcore_dropped"] = pairs.count - core.count
            counts["kcore_users_dropped"] = pairs.users.count - core.users.count
            counts["kcore_items_dropped"] = numbered.item_count - len(old)
            pairs = core
        users = pairs.users.table.order_by("number").select("id")
        user_ids = write_ids(engine, users, folder / "user_ids.arrow")
        if inputs.mapping is not None:
            user_ids = save_ids(external_ids(user_ids, inputs.mapping, "userID"), folder / "user_ids.arrow")
        item_ids = save_ids(item_ids, folder / "item_ids.arrow")
        say(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
    return Cleaned(pairs, user_ids, item_ids, kept)


def label(
    inputs: Inputs,
    cleaned: Cleaned,
    options: BuildOptions,
    engine: Engine,
    folder: Path,
    stages: Stages,
    counts: dict[str, int],
) -> Labelled:
    """Splits the interactions, and drops held-out ones of users without a training interaction.

    Raises:
        InputError: no training interaction, too few items, or bounds in time that are none.
    """
    pairs, method, (users, items) = cleaned.pairs, inputs.method, cleaned.sizes
    with stages("split") as say:
        divided = divide(engine, pairs.table, pairs.count, method, options, inputs.dated)
        table = evaluable(divided.table, method).order_by("user", "item")
        types: dict[str, DTypeLike] = {
            "user": blocks.index_type(users),
            "item": blocks.index_type(items),
            "split": np.int8,
        }
        if "weight" in table.columns:
            types["weight"] = np.float32
        columns = write_columns(engine, table, types, folder)
        training, validation, test = blocks.counts(columns["split"], 3)
        if not training:
            message = "the training split is empty; --split random makes one"
            raise inputs.first.error(message, inputs.split_column, code="split.empty")
        counts["users_without_training"] = int((blocks.counts(columns["user"], users) == 0).sum())
        counts["heldout_dropped"] = pairs.count - len(columns["user"])
        say(f"{method.recorded}: training {training:,}, validation {validation:,}, test {test:,}")
        if divided.report:
            say(divided.report)
        if divided.tied_time_share is not None:
            stages.statistics["tied_time_share"] = divided.tied_time_share
        if counts["heldout_dropped"]:
            was = [
                engine.number(divided.table.filter(divided.table.split == kind).count()) for kind in (VALIDATION, TEST)
            ]
            lost = f"validation {was[0] - validation:,}, test {was[1] - test:,}"
            say(f"dropped {counts['heldout_dropped']:,} held-out ones of users without training ({lost})")
        empty = [name for name, size in (("validation", validation), ("test", test)) if not size]
        if empty and method is not SplitMethod.NONE:
            say(f"warning: nothing in {' and '.join(empty)}; --split none trains on everything, without {empty[0]}")
    return Labelled(columns["user"], columns["item"], columns["split"], columns.get("weight"))


def load_features(
    inputs: Inputs, cleaned: Cleaned, options: BuildOptions, folder: Path, stages: Stages, counts: dict[str, int]
) -> dict[str, Features]:
    """Loads the matrices of the remaining items, reduces them by PCA, and exchanges rows with `--noise`.

    Raises:
        InputError: anything wrong with the features.
    """
    with stages("features") as say:
        names = inputs.matrices.names
        dims, choices = pca_dims(options.pca, names), missing_choices(options.missing, names)
        features, shares, missing = load(
            inputs.matrices, cleaned.kept, choices, dims, inputs.catalogue.ids, count(options.threads)
        )
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


def digests(files: Sequence[Place], stages: Stages, threads: int = 1) -> dict[str, str]:
    """sha256 of every input file, under its name or, if several have that name, its path or URI."""
    names = [place.file_name for place in files]
    with stages("digests") as say:
        own = [place.file_name if names.count(place.file_name) == 1 else place.name for place in files]
        found = dict(zip(own, each(lambda place: place.sha256(), files, threads), strict=True))
        say(f"{len(found)} input files")
    return found
