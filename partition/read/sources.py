"""Finds out what the files of `--input` are, by their names and columns.

A table with a user and an item column is interactions; one with an item column alone is an items table, and its list
columns of numbers are modalities. `NAME_feat.npy` or `.npz` is the modality NAME. A folder with an `.inter` file has
MMRec's layout: ids are numbers, feature row = item number, and `i_id_mapping.csv` holds the external item ids. Every
file that is not used is named, with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from partition.errors import InputError
from partition.read.columns import (
    ALIASES,
    Role,
    column_of,
    item_column,
    missing_column,
    needed_columns,
    usual_columns,
)
from partition.read.feature_sources import MATRICES, modality_of
from partition.read.places import COMPRESSED, Listing, Place, listing
from partition.read.table_file import NAMED_ONLY, SUFFIXES, TableFile, is_table, open_table
from partition.threads import each
from partition.transform.dataset import TEST, TRAIN, VALIDATION

__all__ = [
    "ALIASES",
    "MAPPINGS",
    "Found",
    "Role",
    "column_of",
    "find",
    "item_column",
    "missing_column",
    "needed_columns",
    "split_of_name",
    "usual_columns",
]

MAPPINGS: dict[str, Role] = {"u_id_mapping.csv": "user", "i_id_mapping.csv": "item"}  # MMRec's number <-> external id
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val", "dev"), VALIDATION),
    "test": TEST,
}
_OPEN_AT_ONCE = 8  # files whose header or schema is read at the same time


@dataclass(frozen=True)
class Found:
    """The files of `--input`, by their purpose."""

    name: str
    interactions: list[TableFile]
    items: list[TableFile]  # items tables, in the order of their names
    features: dict[str, Path]  # modality -> NAME_feat.npy
    mapping: dict[Role, TableFile]  # MMRec's mapping files
    splits: dict[TableFile, int] = field(default_factory=dict)  # TRAIN, VALIDATION, TEST, if files say it; else empty
    unused: list[str] = field(default_factory=list)  # files that are not read, with the reason


def find(
    inputs: Sequence[str],
    given: Mapping[Role, str | None],
    name: str | None = None,
    validation: Sequence[str] = (),
    test: Sequence[str] = (),
) -> Found:
    """Determines the purpose of every file of `--input`, `--validation` and `--test`.

    Args:
        inputs: files, folders, patterns or URIs of these (see `partition.read.places`).
        given: names of the columns, where they were given.
        name: name of the data set; by default that of the `.inter` file, or of the first input.
        validation: interactions for validation, like `inputs`; the others of `inputs` are then for training.
        test: interactions for testing.

    Raises:
        InputError: a missing or unreadable file, a table that is neither interactions nor items, no interactions, or
            names that give a split to some of the interactions and not to others.
    """
    reader = _Reader()
    held: dict[TableFile, int] = {}
    for sources, label in ((validation, VALIDATION), (test, TEST)):
        for table in reader.read_all(sources):
            needed_columns(table, ("user", "item"), given)
            if held.setdefault(table, label) != label:
                raise table.error("is given for validation and for testing", code="split.files")
    tables = [table for table in reader.read_all(inputs) if table not in held]
    if not tables:
        looked = ", *".join(sorted(SUFFIXES - NAMED_ONLY))
        beside = f"; not used: {', '.join(reader.unused[:3])}" if reader.unused else ""
        raise InputError(f"{inputs[0]}: no table in it; looked for *{looked}{beside}", "table.missing")
    logs = [table for table in tables if column_of(table, "user", given)]
    items = [table for table in tables if table not in logs]
    for table in tables:
        if not (item_column(table, given) if table in items else column_of(table, "item", given)):
            raise missing_column(table, "item", given) if logs else missing_column(table, "user", given, "item")
    if not logs:
        raise missing_column(items[0], "user", given)
    splits = dict.fromkeys(logs, TRAIN) | held if held else _splits_by_name(logs)
    name = name or _name(inputs[0], logs[0])
    return Found(name, [*logs, *held], items, reader.features, reader.mapping, splits, reader.unused)


def split_of_name(file_name: str) -> int | None:
    """The split that a file name begins or ends with: train-00001.parquet, ml.valid.inter, log_test.csv.gz."""
    stem = file_name.lower()
    while (cut := re.fullmatch(r"(.+)\.(gz|zst|bz2|[a-z]+)", stem)) and cut[2] not in SPLIT_NAMES:
        stem = cut[1]
    words = re.split(r"[-_.]", stem)
    return SPLIT_NAMES.get(words[0], SPLIT_NAMES.get(words[-1]))


class _Reader:
    """Opens the tables of sources, and collects what lies beside them."""

    def __init__(self) -> None:
        self.features: dict[str, Path] = {}
        self.mapping: dict[Role, TableFile] = {}
        self.unused: list[str] = []

    def read_all(self, sources: Sequence[str]) -> list[TableFile]:
        """The tables of some sources; one that several of them name is read once."""
        places = [place for source in sources for place in self._tables(source)]
        distinct = {os.path.realpath(place.path) if place.is_local else place.name: place for place in reversed(places)}
        return each(open_table, reversed(distinct.values()), _OPEN_AT_ONCE)

    def _tables(self, source: str) -> Iterator[Place]:
        found = listing(source)
        self.unused += found.unused
        chosen = _without_other_logs(found, source)
        for place in found.places:
            modality = modality_of(Path(place.file_name))
            if modality is not None and place.is_local:
                self._add_features(modality, place)
            elif place.file_name in MAPPINGS:
                self.mapping[MAPPINGS[place.file_name]] = open_table(place)
            elif not found.named and (reason := _reason(place, chosen)):
                self.unused.append(f"{place.file_name} ({reason})")
            else:
                yield place

    def _add_features(self, modality: str, place: Place) -> None:
        """Adds a matrix; one of a format that is not read counts only if there is no other of its modality."""
        paths = [Path(place.path)]
        if modality in self.features:
            paths.insert(0, self.features[modality])
        read = [path for path in paths if path.suffix.lower() in MATRICES] or paths
        if len(read) > 1:
            message = f"{place.name}: a second file for modality {modality!r}, after {read[0]}"
            raise InputError(message, "features.duplicate")
        self.features[modality] = read[0]
        self.unused += [f"{path.name} (beside {read[0].name})" for path in paths if path not in read]


def _reason(place: Place, chosen: Sequence[Place]) -> str | None:
    """Why a file of a folder is not read; None if it is."""
    if place.file_name.startswith("_"):
        return "its name begins with _"
    if modality_of(Path(place.file_name)) is not None:
        return "features are read from a local disk"
    if not is_table(place):
        return "give it with --input if it is a table" if is_table(place, named=True) else "no table"
    return f"beside {chosen[0].file_name}" if chosen and place not in chosen else None


def _without_other_logs(found: Listing, source: str) -> list[Place]:
    """The `.inter` files to read, if there are any in a folder: one, or one per split."""
    inter = [place for place in found.places if place.suffixes[0] == ".inter"]
    folder = Path(source).resolve().name
    if found.named or len(inter) < 2 or all(split_of_name(place.file_name) is not None for place in inter):
        return inter
    named = [place for place in inter if place.file_name.lower().split(".inter")[0] == folder.lower()]
    if not named:
        files = ", ".join(place.file_name for place in inter)
        message = f"{source}: several .inter files ({files}); give the one to read with --input"
        raise InputError(message, "table.ambiguous")
    return named[:1]


def _splits_by_name(logs: Sequence[TableFile]) -> dict[TableFile, int]:
    """The split of each table, if the names say it: one for training and one that is not."""
    labels = {table: split_of_name(table.place.file_name) for table in logs}
    known = {table: label for table, label in labels.items() if label is not None}
    if TRAIN not in known.values() or len(set(known.values())) < 2:
        return {}
    if others := [table for table in logs if table not in known]:
        first = next(iter(known)).place.file_name
        message = f"which split? {first} and others say theirs by name; use --input, --validation and --test for each"
        raise others[0].error(message, code="split.files")
    return known


def _name(source: str, log: TableFile) -> str:
    """Name of the data set: that of the `.inter` file, else of the first input, without suffix or pattern."""
    if log.place.suffixes[0] != ".inter":
        if (folder := Path(source).resolve()).is_dir():
            return folder.name
        path = source.partition("?")[0] if "://" in source else source
        if (wild := re.search(r"[*?\[]", path)) is not None:
            path = path[: wild.start()].rpartition("/")[0]  # the folder in which the pattern begins
        if name := _stem(path.rstrip("/").rpartition("/")[2]):
            return name
    return re.sub(rf"[-_.]({'|'.join(SPLIT_NAMES)})$", "", _stem(log.place.file_name))


def _stem(file_name: str) -> str:
    path = Path(file_name)
    return Path(path.stem).stem if path.suffix in COMPRESSED else path.stem
