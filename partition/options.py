"""The options of `python -m partition build`, typed once: the command line is made from them (`partition.cli`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from partition.errors import InputError

SEED = 2025
SPECTRAL = "spectral"  # name of the modality made from training interactions (partition.transform.spectral)
COLUMNS, CLEANING, SPLIT, FEATURES = "Columns", "Rows and weights", "Split", "Features"
GRAPH, ENGINE, EXPERIMENTS = "Item graph and parts", "Engine", "Experiments"

# A split as a manifest records it.
RecordedSplit = Literal["column", "files", "random", "leave_last_out", "time", "cold_items", "none"]


def option(
    default: Any = ...,
    help: str = "",
    *,
    panel: str | None = None,
    metavar: str | None = None,
    as_text: bool = False,
    argument: bool = False,
    **limits: Any,
) -> Any:
    """A field of an options model that is also an option of the command line.

    Args:
        default: its default; `...` if it is required.
        help: one line for `--help`.
        panel: heading in `--help` under which the option is listed.
        metavar: placeholder of the value in `--help`.
        as_text: the command line takes plain text, which the model parses.
        argument: it is given by its place, without its name.
        **limits: bounds as of `pydantic.Field`: `ge`, `le`, `min_length`, ...
    """
    command_line: Any = {"panel": panel, "metavar": metavar, "as_text": as_text, "argument": argument}
    return Field(default, description=help, json_schema_extra=command_line, **limits)


class Choice(str, Enum):
    """An option with a fixed set of values; equal to its text and printed as it."""

    def __str__(self) -> str:
        return self.value


class SplitMethod(Choice):
    """How interactions are divided into training, validation and test."""

    AUTO = "auto"
    COLUMN = "column"
    FILES = "files"
    RANDOM = "random"
    LEAVE_LAST_OUT = "leave-last-out"
    TIME = "time"
    COLD_ITEMS = "cold-items"
    NONE = "none"

    @property
    def recorded(self) -> RecordedSplit:
        """Its name in a manifest, with underscores."""
        return cast(RecordedSplit, self.value.replace("-", "_"))


class CutMethod(Choice):
    """How users and items are assigned to parts."""

    AUTO = "auto"
    METIS = "metis"
    STREAM = "stream"
    RANDOM = "random"


class Missing(Choice):
    """What becomes of items without features of a modality."""

    REFUSE = "refuse"
    ZEROS = "zeros"
    MEAN = "mean"
    DROP = "drop"
    MASK = "mask"


class Options(BaseModel):
    """Base of the options of a command: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BuildOptions(Options):
    """Options of `python -m partition build`; docs/data.md explains them."""

    input: list[str] = option(
        help="Folder (of MMRec, or of tables), file, pattern or URI such as s3://bucket/logs; repeatable.",
        metavar="SOURCE",
        min_length=1,
    )
    output: Path = option(help="Folder to write.", metavar="PREPARED")
    parts: int = option(help="Parts to cut the graph into; any number of ranks that divides it can train.", ge=1)
    name: str | None = option(None, "Name of the data set; by default that of the input.")
    user_column: str | None = option(None, "Its name, if not a usual one such as user_id.", panel=COLUMNS)
    item_column: str | None = option(None, "Its name, if not a usual one such as item_id.", panel=COLUMNS)
    time_column: str | None = option(None, "Its name, if not a usual one such as timestamp.", panel=COLUMNS)
    split_column: str | None = option(None, "Its name, if not x_label or split.", panel=COLUMNS)
    rating_column: str | None = option(None, "Its name, if not a usual one such as rating.", panel=COLUMNS)
    event_column: str | None = option(None, "Its name, if not a usual one such as event_type.", panel=COLUMNS)
    where: str | None = option(
        None, 'Keep the rows for which this is true: "rating >= 4".', panel=CLEANING, metavar="EXPRESSION"
    )
    min_rating: float | None = option(None, "Keep the rows with at least this rating.", panel=CLEANING)
    weight_column: str | None = option(None, "Column with the weight of an interaction.", panel=CLEANING)
    event_weight: str | None = option(
        None, "Weight of each event; rows of others are dropped.", panel=CLEANING, metavar="buy=3,click=1"
    )
    kcore: int = option(0, "Keep users and items with at least this many interactions.", panel=CLEANING, ge=0)
    drop_unknown_items: bool = option(False, "Drop interactions with items that have no features.", panel=CLEANING)
    split: SplitMethod = option(
        SplitMethod.AUTO,
        "auto: by files or column if the input says it, else random 8:1:1.",
        panel=SPLIT,
    )
    validation: list[str] = option(
        [], "Interactions for validation; repeatable. --input is then for training.", panel=SPLIT, metavar="SOURCE"
    )
    test: list[str] = option([], "Interactions for testing; repeatable.", panel=SPLIT, metavar="SOURCE")
    validate_from: str | None = option(
        None,
        "With --split time: where validation begins; by default after 80 % of the rows.",
        panel=SPLIT,
        metavar="TIME",
    )
    test_from: str | None = option(
        None, "With --split time: where testing begins; by default after 90 % of the rows.", panel=SPLIT, metavar="TIME"
    )
    seed: int = option(SEED, "Seed of every random choice.", panel=SPLIT, ge=0)
    features: list[str] = option(
        [],
        "A modality of the input, or from a file; repeatable, in the order of the curve.",
        panel=FEATURES,
        metavar="NAME[=FILE[:COLUMN]]",
    )
    pca: list[str] = option(
        [], "Reduce the width of all modalities, or of one; repeatable.", panel=FEATURES, metavar="[NAME=]DIM"
    )
    missing: list[str] = option(
        [],
        "Items without features: refuse, zeros, mean, drop or mask; for all modalities, or one; repeatable.",
        panel=FEATURES,
        metavar="[NAME=]CHOICE",
    )
    item_graph_k: int = option(10, "Neighbours per item and modality, itself included.", panel=GRAPH, ge=1)
    item_graph_weight: list[str] = option(
        [], "Weight of a modality; repeatable. Image and one other: 0.1, 0.9.", panel=GRAPH, metavar="NAME=W"
    )
    approximate_above: int = option(200_000, "Items above which the search is approximate.", panel=GRAPH, ge=0)
    method: CutMethod = option(
        CutMethod.AUTO,
        "How parts are cut. auto: metis up to 20 million training interactions, else stream.",
        panel=GRAPH,
    )
    engine: str = option(
        "duckdb", "duckdb, spark-local, or the URL of a Spark master: spark://host:7077.", panel=ENGINE, metavar="NAME"
    )
    memory: str | None = option(
        None, "Memory for tables, beyond which they go to the disk; by default half.", panel=ENGINE, metavar="4GB"
    )
    threads: int | None = option(None, "Threads; by default one per core.", panel=ENGINE, ge=1)
    spectral: int = option(
        0,
        "Add a modality `spectral` of this width, from the training interactions.",
        panel=EXPERIMENTS,
        metavar="DIM",
        ge=0,
    )
    cooccurrence_weight: float = option(
        0.0, "Weight of neighbours that share users in training.", panel=EXPERIMENTS, ge=0, allow_inf_nan=False
    )
    noise: float = option(
        0.0, "Share of the items that exchange feature rows.", panel=EXPERIMENTS, metavar="SHARE", ge=0, le=1
    )
    overwrite: bool = option(False, "Replace a prepared folder.")


class RecutOptions(Options):
    """Options of `python -m partition recut`."""

    prepared: Path = option(help="Folder written by build.", metavar="PREPARED", argument=True)
    output: Path = option(help="Folder to write.", metavar="NEW")
    parts: int = option(help="Parts to cut the graph into.", ge=1)
    method: CutMethod | None = option(None, "How parts are cut; by default as in the folder.")
    overwrite: bool = option(False, "Replace a prepared folder.")


def default_weights(modalities: Sequence[str]) -> dict[str, float]:
    """Weights of the modalities in the item graph: 0.1 for the image and 0.9 for the other of two, else equal.

    The spectral modality has no part unless it is the only one.
    """
    if len(modalities) > 1 and SPECTRAL in modalities:
        return {**default_weights([name for name in modalities if name != SPECTRAL]), SPECTRAL: 0.0}
    if len(modalities) == 2 and "image" in modalities:
        return {name: 0.1 if name == "image" else 0.9 for name in modalities}
    return {name: 1 / len(modalities) for name in modalities}


def item_graph_weights(texts: Sequence[str], modalities: Sequence[str]) -> dict[str, float]:
    """Parses `NAME=W` for every modality; without any, the default weights.

    Raises:
        InputError: an unknown or missing modality, a weight that is not a number of at least 0, or no weight above 0.
    """
    if not texts:
        return default_weights(modalities)
    weights = {}
    for text in texts:
        name, weight = _named_number(text, "--item-graph-weight", modalities)
        if name is None or not 0 <= weight < math.inf:
            raise InputError(f"--item-graph-weight {text}: expected NAME=W with W >= 0", "option.item-graph-weight")
        weights[name] = weight
    missing = [name for name in modalities if name not in weights]
    if missing:
        raise InputError(
            f"--item-graph-weight: give one for every modality; {missing[0]!r} is missing", "option.item-graph-weight"
        )
    if not any(weights.values()):
        raise InputError("--item-graph-weight: at least one weight must be above 0", "option.item-graph-weight")
    return weights


def pca_dims(texts: Sequence[str], modalities: Sequence[str]) -> dict[str, int]:
    """Parses `DIM` (under the name "*": for all modalities that are wider) and `NAME=DIM` (for one).

    Raises:
        InputError: an unknown modality, or a number of dimensions that is not whole and positive.
    """
    dims: dict[str, int] = {}
    for text in texts:
        name, dim = _named_number(text, "--pca", modalities)
        if dim < 1 or dim != int(dim):
            raise InputError(f"--pca {text}: expected DIM or NAME=DIM, a whole number of at least 1", "option.pca")
        dims["*" if name is None else name] = int(dim)
    return dims


def missing_choices(texts: Sequence[str], modalities: Sequence[str]) -> dict[str, Missing]:
    """Parses `CHOICE` (for all modalities without one of their own) and `NAME=CHOICE`; by default items are refused.

    Returns:
        The choice of every modality.

    Raises:
        InputError: an unknown modality or choice.
    """
    found: dict[str | None, Missing] = {}
    for text in texts:
        name, choice = _named(text, "--missing", modalities)
        try:
            found[name] = Missing(choice)
        except ValueError:
            known = ", ".join(Missing)
            raise InputError(f"--missing {text}: no choice {choice!r}; there are {known}", "option.missing") from None
    return {name: found.get(name, found.get(None, Missing.REFUSE)) for name in modalities}


def _named_number(text: str, option: str, modalities: Sequence[str]) -> tuple[str | None, float]:
    name, number = _named(text, option, modalities)
    try:
        return name, float(number)
    except ValueError:
        raise InputError(f"{option} {text}: {number!r} is not a number", "option.number") from None


def _named(text: str, option: str, modalities: Sequence[str]) -> tuple[str | None, str]:
    """Splits `[NAME=]VALUE`; None for the name if there is none."""
    name, equals, value = text.rpartition("=")
    if equals and name not in modalities:
        known = ", ".join(modalities)
        raise InputError(f"{option} {text}: no modality {name!r}; there are {known}", "features.unknown")
    return name if equals else None, value
