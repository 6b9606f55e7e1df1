"""An interactions table as an engine reads it: Parquet files with ids of two types and no null among them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from partition.files import atomic_file
from partition.read import id_values
from partition.read.role_values import ROLES, IdColumn, NextTypeError, OtherColumn, RoleColumn, TimeColumn
from partition.read.table_file import TableFile

_BATCH_ROWS = 1 << 16
_GROUP_ROWS = 1 << 20
_GROUP_BYTES = 1 << 27  # of long ids, fewer rows make a group
_FACTS = b"partition.log"  # key of the metadata of a copy: rows, numeric, whole, dated


@dataclass(frozen=True)
class Log:
    """One interactions table in Parquet.

    Columns in `parquet`: user and item are integers or text, without nulls; time is integers or float64, without nulls
    and finite; split is 0, 1 or 2; rating and weight are numbers or null; event is text or null; the others are as in
    the input. A copy has int64 and float64. The input itself, where it is read directly, may have narrower integers and
    floats: cast them.
    """

    file: TableFile  # where it came from, for errors
    parquet: tuple[str, ...]  # the input itself where it fits, else a copy in the work folder
    columns: dict[str, str]  # role -> column name in the Parquet files; other columns keep their names
    numeric: dict[str, bool]  # "user", "item" -> every id is a whole number of 64 bits (text: written as one)
    whole: dict[str, bool]  # "user", "item" -> every id is a whole number of any size; beyond 64 bits it is text
    dated: bool  # the times were dates: now microseconds since 1970, UTC
    rows: int

    @property
    def is_copy(self) -> bool:
        """False if the engine reads the input itself."""
        return self.parquet != (self.file.place.path,)


def open_log(file: TableFile, roles: Mapping[str, str], extra: Sequence[str], folder: Path) -> Log:
    """Checks a table and copies it to Parquet where an engine cannot read it as it is; memory is bounded.

    Args:
        file: any table; an items table has the role item alone.
        roles: user, item, time, split, rating, weight, event -> the column with that role.
        extra: other columns, for expressions such as `--where`.
        folder: where the copy goes, as log-DIGEST.parquet. A copy of the same file and columns is used again.

    Raises:
        InputError: an id, a time or a label is missing or not one, a type that cannot have the role, or a type that
            Parquet does not have.
        OSError: the copy cannot be written.
    """
    for one, other in combinations(dict.fromkeys(extra), 2):
        if one.casefold() == other.casefold():
            message = (
                f"columns {one!r} and {other!r} differ in case alone, so --where cannot tell them apart; rename one"
            )
            raise file.error(message, code="option.where")
    columns = [ROLES[role](file, role, column) for role, column in roles.items()]
    columns += [OtherColumn(file, column, column) for column in dict.fromkeys(extra)]
    if (rows := _rows_if_direct(file, roles, extra)) is not None:
        numeric = {column.role: column.numeric for column in columns if isinstance(column, IdColumn)}
        return Log(file, (file.place.path,), dict(roles), numeric, dict(numeric), False, rows)
    for column in columns:
        _check_parquet(column)
    names = _output_names(roles, extra)
    key = json.dumps([file.place.stamp(), file.place.keys, sorted(roles.items()), sorted(extra)])
    path = folder / f"log-{hashlib.sha256(key.encode()).hexdigest()[:16]}.parquet"
    if not path.exists():
        _copy_with_types(file, columns, names, path)
    facts = json.loads(pq.read_metadata(path).metadata[_FACTS])
    return Log(file, (str(path),), names, facts["numeric"], facts["whole"], facts["dated"], facts["rows"])


def _rows_if_direct(file: TableFile, roles: Mapping[str, str], extra: Sequence[str]) -> int | None:
    """The number of rows if an engine can read the file itself: a local Parquet file whose statistics say so."""
    names = [*roles.values(), *extra]
    if file.format != "parquet" or not file.place.is_local or any(name in dict(file.keys) for name in names):
        return None
    if len({name.casefold() for name in file.names}) < len(file.names):  # which engines do not tell apart
        return None
    metadata = pq.read_metadata(file.place.path)
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    for role, name in roles.items():
        if not _fits(role, id_values.value_type(file.type_of(name))):
            return None
        if role in ("user", "item", "time", "split") and name not in paths:
            return None
        for group in range(metadata.num_row_groups if role in ("user", "item", "time", "split") else 0):
            found = metadata.row_group(group).column(paths.index(name)).statistics
            if found is None or not found.has_null_count or found.null_count:
                return None
            if role == "split" and not (found.has_min_max and found.min >= 0 and found.max <= 2):
                return None
    return int(metadata.num_rows)


def _fits(role: str, kind: pa.DataType) -> bool:
    """True for a type that engines read as what the role needs."""
    integer = pa.types.is_integer(kind) and kind != pa.uint64()
    if role in ("user", "item"):
        return integer or id_values.is_text(kind)
    if role == "event":
        return id_values.is_text(kind)
    if role in ("rating", "weight"):
        return integer or kind in (pa.float32(), pa.float64())
    return integer


def _check_parquet(column: RoleColumn) -> None:
    try:
        pq.write_table(pa.table({"c": pa.array([], column.type)}), pa.BufferOutputStream())
    except (pa.ArrowException, ValueError):
        raise column.wrong_type("no expression can use it", "column.type") from None


def _output_names(roles: Mapping[str, str], extra: Sequence[str]) -> dict[str, str]:
    """Names of the roles in a copy: their own, with _ in front of it where another column has that name."""
    names: dict[str, str] = {}
    taken = {column.casefold() for column in extra}
    for role in roles:
        names[role] = role
        while names[role].casefold() in taken:
            names[role] = f"_{names[role]}"
        taken.add(names[role].casefold())
    return names


def _copy_with_types(file: TableFile, columns: Sequence[RoleColumn], names: Mapping[str, str], path: Path) -> None:
    """Copies the table; begins again whenever a column turns out to be of another type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            _copy(file, columns, names, path)
            return
        except NextTypeError:
            continue


def _copy(file: TableFile, columns: Sequence[RoleColumn], names: Mapping[str, str], path: Path) -> None:
    for column in columns:
        column.begin()
    own = [column.column if isinstance(column, OtherColumn) else names[column.role] for column in columns]
    schema = pa.schema([(name, column.type) for name, column in zip(own, columns, strict=True)])
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1) as writer,
        tqdm(
            desc=f"read {file.place.file_name}",
            total=file.rows,
            unit="row",
            unit_scale=True,
            disable=None,
            leave=False,
        ) as bar,
    ):
        rows, waiting = 0, []
        for batch in file.batches(list(dict.fromkeys(column.column for column in columns)), _BATCH_ROWS):
            arrays = [column.convert(batch.column(column.column), rows) for column in columns]
            rows += len(batch)
            bar.update(len(batch))
            if any(column.faulty for column in columns):  # count the others, but write no more
                continue
            waiting.append(pa.record_batch(arrays, schema=schema))
            if sum(map(len, waiting)) >= _GROUP_ROWS or sum(part.nbytes for part in waiting) >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting, schema))
                waiting = []
        for column in columns:
            column.check(rows)
        writer.write_table(pa.Table.from_batches(waiting, schema))
        writer.add_key_value_metadata({_FACTS: json.dumps(_facts(columns, rows))})


def _facts(columns: Sequence[RoleColumn], rows: int) -> dict[str, object]:
    ids = [column for column in columns if isinstance(column, IdColumn)]
    return {
        "rows": rows,
        "numeric": {column.role: column.numeric for column in ids},
        "whole": {column.role: column.whole for column in ids},
        "dated": any(column.dated for column in columns if isinstance(column, TimeColumn)),
    }
