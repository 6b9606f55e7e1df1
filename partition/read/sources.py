"""Finds the interaction logs, items tables and feature files of a data set.

A table with a user and an item column holds interactions. A table with an item column and no user column is an items
table, whose list columns are feature modalities. `NAME_feat.npy` is the modality NAME. A folder with an `.inter` file
has MMRec's layout: ids are numbers, feature row = item number, and `i_id_mapping.csv` holds the external item ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from partition.errors import InputError
from partition.read.table_file import SUFFIXES, TableFile, open_table

Role = Literal["user", "item", "time", "split", "rating", "event", "weight"]
ALIASES: dict[Role, tuple[str, ...]] = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "asin", "iid"),
    "time": ("timestamp", "time", "ts"),
    "split": ("x_label", "split"),
    "rating": ("rating",),
    "event": ("event", "event_type"),
    "weight": (),
}
MAPPINGS: dict[str, Role] = {"u_id_mapping.csv": "user", "i_id_mapping.csv": "item"}  # MMRec's number <-> external id
_FEATURES = "_feat.npy"
# In a folder, .txt files may be notes as well as tables: they are read only if they are named.
_FOLDER_SUFFIXES = SUFFIXES - {".txt"}


@dataclass(frozen=True)
class Found:
    """The files of `--input`, by their purpose."""

    name: str
    interactions: list[TableFile]
    items: list[TableFile]  # items tables, in the order of their names
    features: dict[str, Path]  # modality -> NAME_feat.npy
    mapping: dict[Role, TableFile]  # MMRec's mapping files
    splits: dict[TableFile, int] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def column_of(file: TableFile, role: Role, given: Mapping[Role, str | None]) -> str | None:
    """The column for a role: the given one, else the one with a usual name; None if there is none.

    Raises:
        InputError: two columns have a usual name.
    """
    wanted = given.get(role)
    if wanted is not None:
        return wanted if wanted in file.names else None
    usual = usual_columns(file, role)
    if len(usual) > 1:
        both = " and ".join(map(repr, usual[:2]))
        message = f"columns {both} could both be the {role} column; choose with --{role}-column"
        raise file.error(message, code="column.ambiguous")
    return usual[0] if usual else None


def usual_columns(file: TableFile, role: Role) -> list[str]:
    """The columns with a usual name for a role, also as RecBole writes it, with the type: user_id:token."""
    return [name for name in file.names if name.split(":")[0].lower() in ALIASES[role]]


def item_column(file: TableFile, given: Mapping[Role, str | None]) -> str | None:
    """The id column of an items table: the given one, else the one with a usual name."""
    return column_of(file, "item", given) or column_of(file, "item", {})


def missing_column(file: TableFile, role: Role, given: Mapping[Role, str | None]) -> InputError:
    """The error for a table without a column for `role`."""
    columns, wanted = ", ".join(file.names), given.get(role)
    if wanted is not None:
        return file.error(f"no column {wanted!r} (--{role}-column); the columns are {columns}", code="column.missing")
    usual = ", ".join(ALIASES[role])
    message = f"no {role} column ({usual}); the columns are {columns}; name it with --{role}-column"
    return file.error(message, code="column.missing")


def find(inputs: Sequence[Path], given: Mapping[Role, str | None], name: str | None = None) -> Found:
    """Determines the purpose of every file of `--input`.

    Args:
        inputs: files, or folders (whose sub-folders are not read).
        given: names of the columns, where they were given.
        name: name of the data set; by default that of the `.inter` file, or of the first input.

    Raises:
        InputError: a missing or unreadable file, a table that is neither interactions nor items, no interactions.
    """
    tables: list[TableFile] = []
    features: dict[str, Path] = {}
    mapping: dict[Role, TableFile] = {}
    for place in inputs:
        if not place.exists():
            raise InputError(f"{place}: no such file or folder", "file.missing")
        for path in _files_of(place) if place.is_dir() else [place]:
            if path.name.endswith(_FEATURES):
                modality = path.name.removesuffix(_FEATURES)
                if modality in features:
                    message = f"{path}: a second file for modality {modality!r}, after {features[modality]}"
                    raise InputError(message, "features.duplicate")
                features[modality] = path
            elif path.name in MAPPINGS:
                mapping[MAPPINGS[path.name]] = open_table(path)
            else:
                tables.append(open_table(path))
    if not tables:
        message = f"{inputs[0]}: no table in it; looked for *{', *'.join(sorted(_FOLDER_SUFFIXES))}"
        raise InputError(message, "table.missing")
    with_users = [table for table in tables if column_of(table, "user", given)]
    items = [table for table in tables if table not in with_users]
    for table in tables:
        if not (item_column(table, given) if table in items else column_of(table, "item", given)):
            raise missing_column(table, "item", given)
    if not with_users:
        raise missing_column(items[0], "user", given)
    first = inputs[0].resolve()
    log = with_users[0].path
    default = log.stem if log.suffix == ".inter" else first.name if first.is_dir() else first.stem
    return Found(name or default, with_users, items, features, mapping)


def _files_of(folder: Path) -> list[Path]:
    """The files of a folder to read, in the order of their names."""
    inside = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] not in "._")
    inter = [path for path in inside if path.suffix == ".inter"]
    named = [path for path in inter if path.stem == folder.resolve().name]
    if len(inter) > 1 and not named:
        files = ", ".join(path.name for path in inter)
        message = f"{folder}: several .inter files ({files}); give the one to read with --input"
        raise InputError(message, "table.ambiguous")
    tables = (named or inter)[:1] or [path for path in inside if path.suffix in _FOLDER_SUFFIXES]
    by_name = [path for path in inside if path.name.endswith(_FEATURES) or path.name in MAPPINGS]
    return list(dict.fromkeys([*tables, *by_name]))
