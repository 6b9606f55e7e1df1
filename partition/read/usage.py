"""Nothing is skipped in silence: which files and columns are used and which are not; labels that nobody reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partition.read import id_values
from partition.read.columns import ALIASES, Role, usual_name
from partition.read.feature_types import why_unusable
from partition.read.sources import Found
from partition.read.table_file import TableFile

LABELS = frozenset({"label", "target", "click", "is_click", "like"})
_ZEROS = frozenset({"0", "0.0", "false"})
_HINTS: dict[Role, str] = {
    "rating": "see --min-rating, --weight-column",
    "event": "see --event-weight",
    "time": "see --split time, --split leave-last-out",
    "split": "see --split column",
}
_SHOWN_FILES, _SHOWN_NAMES = 8, 20  # names in a line


def report(found: Found, used: Mapping[TableFile, Collection[str]], matrices: Collection[Path] = ()) -> tuple[str, str]:
    """Two lines for the user: what is used, and what is not.

    Args:
        found: the files.
        used: per table, the columns that are read, also those in `--where`.
        matrices: the matrix files that are read.

    Returns:
        "used: log.csv (user_id, item_id), image_feat.npy" and "not used: rating (see --min-rating), notes.docx
        (no table)"; the second is "" if everything is used.
    """
    groups: dict[str, list[str]] = {}  # columns -> tables that have just these
    for table, columns in used.items():
        listed = ", ".join(name for name in table.names if name in columns)
        groups.setdefault(listed, []).append(table.place.file_name)
    read = [f"{_listed(names)} ({columns})" for columns, names in groups.items()]
    read += [path.name for path in matrices]
    left = {name: table for table, columns in used.items() for name in table.names if name not in columns}
    unused = [_with_hint(name, table) for name, table in left.items()] + list(found.unused)
    unused += [f"{path.name} (see --features)" for path in found.features.values() if path not in matrices]
    return f"used: {', '.join(read)}", f"not used: {_few(unused)}" if unused else ""


def refuse_unread_labels(log: TableFile, where: str | None, used: Collection[str] = ()) -> None:
    """Refuses a log whose column `label` (or target, click, is_click, like) says that some rows are no interactions.

    Args:
        log: the interactions.
        where: the expression of `--where`; a column that it names is read.
        used: columns that are read with another role.

    Raises:
        InputError: the column holds a 0, or false.
    """
    for column in log.names:
        named = where is not None and re.search(rf"(?<!\w){re.escape(column)}(?!\w)", where, re.IGNORECASE)
        if usual_name(column) not in LABELS or column in used or named or not (zeros := _zeros(log, column)):
            continue
        count, rows, zero = zeros
        one = "1" if zero.startswith("0") else "true"
        if id_values.is_text(id_values.value_type(log.type_of(column))) and not (log.is_text and one == "1"):
            one = f"'{one}'"
        name = column if re.fullmatch(r"\w+", column) else f'\\"{column}\\"'
        message = (
            f"{count:,} of {rows:,} rows have a 0, which nothing reads; keep the others with "
            f'--where "{name} = {one}", or all with --where "{name} is not null"'
        )
        raise log.error(message, column, code="column.label")


def _zeros(log: TableFile, column: str) -> tuple[int, int, str] | None:
    """Number of zeros in a column, number of rows, and the first zero in lower case; None if there is no zero."""
    if _above_zero(log, column):
        return None
    zeros, rows, first = 0, 0, ""
    for batch in log.batches([column], 1 << 20):
        values = id_values.plain(batch.column(0))
        rows += len(values)
        kind = values.type
        if pa.types.is_boolean(kind):
            found = pc.invert(values)
        elif id_values.is_text(kind):
            found = pc.is_in(pc.utf8_lower(values), value_set=pa.array(sorted(_ZEROS), kind))
        elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            found = pc.equal(values.cast(pa.float64()), 0)
        else:
            return None
        count = pc.sum(found).as_py() or 0
        if count and not zeros:
            first = str(values[pc.index(found, True).as_py()]).lower()
        zeros += count
    return (zeros, rows, first) if zeros else None


def _above_zero(log: TableFile, column: str) -> bool:
    """True if the statistics of a Parquet file say that every value is above 0; the column is not read then."""
    if log.format != "parquet" or not pa.types.is_integer(log.type_of(column)) or column in dict(log.keys):
        return False
    with log.place.open_file() as file:
        metadata = pq.read_metadata(file)
    number = [metadata.schema.column(place).path for place in range(metadata.num_columns)].index(column)
    groups = [metadata.row_group(group).column(number).statistics for group in range(metadata.num_row_groups)]
    return all(found is not None and found.has_min_max and found.min > 0 for found in groups)


def _with_hint(column: str, table: TableFile) -> str:
    why = None if table.schema is None else why_unusable(table.schema.field(column).type)
    if why is not None:
        return f"{column} ({why})"
    role = next((role for role in _HINTS if usual_name(column) in ALIASES[role]), None)
    if role is not None:
        return f"{column} ({_HINTS[role]})"
    return f"{column} (see --where)" if usual_name(column) in LABELS else column


def _listed(files: list[str]) -> str:
    """The names of some files; their number if they are many, or of one name in several folders."""
    named = len(files) <= _SHOWN_FILES and len(set(files)) == len(files)
    return ", ".join(files) if named else f"{len(files):,} files"


def _few(names: list[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
