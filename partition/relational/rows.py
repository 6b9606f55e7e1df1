"""The rows of all logs as one table: those that count as interactions, with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partition.errors import InputError
from partition.options import BuildOptions
from partition.read.log import Log
from partition.relational.engine import Engine
from partition.relational.where import Where

# Weights are float32: below the first bound they would lose digits, above the last they would be infinite.
LEAST_WEIGHT, MOST_WEIGHT = 2.0**-126, 2.0**127
_TYPES = {"split": "int8", "rating": "float64", "weight": "float64", "event": "string"}


@dataclass(frozen=True)
class LogRows:
    """One log, what its columns are called in its file, and the split that the file is for."""

    log: Log
    roles: dict[str, str]  # role -> column of the file
    named: tuple[str, ...] = ()  # columns of the file that `--where` names
    label: int | None = None

    def first(self, role: str, wrong: Callable[[pa.Array], np.ndarray]) -> tuple[int, pa.Array] | None:
        """The first row in which `wrong`, called with values of a column, is true, and its value as an array."""
        done = 0
        for path in self.log.parquet:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=[self.log.columns[role]]):
                    found = np.flatnonzero(wrong(batch.column(0)))
                    if len(found):
                        return done + int(found[0]), batch.column(0).slice(int(found[0]), 1)
                    done += len(batch)
        return None


def first_wrong(
    logs: Sequence[LogRows],
    role: str,
    wrong: Callable[[pa.Array], np.ndarray],
    message: str,
    code: str,
    remedy: str = "",
) -> InputError:
    """An error that says `message`, and the first row of all logs in which `wrong` is true of a column."""
    for own in logs:
        found = own.first(role, wrong)
        if found is not None:
            row, value = found
            file = own.log.file
            text = f"{message}; first: {file.where(row)}, {value[0].as_py()!r}{remedy}"
            return file.error(text, own.roles[role], code=code)
    raise AssertionError("no such row, although the engine counted some")


class Rows:
    """The rows of all logs, under the names user, item, and where they are needed split, time and weight.

    Args:
        engine: runs the expressions.
        logs: the logs.
        text: "user"/"item" -> whether the ids are text, else they are whole numbers.
        options: the command.
        where: its condition.
        weights: of events.
        counts: collects how many rows were dropped, by reason.

    Raises:
        InputError: `option.where`; `weight.invalid`; `rows.none`, nothing is left.
    """

    def __init__(
        self,
        engine: Engine,
        logs: Sequence[LogRows],
        text: Mapping[str, bool],
        options: BuildOptions,
        where: Where | None,
        weights: Mapping[str, float] | None,
        counts: dict[str, int],
    ) -> None:
        self._engine = engine
        own = _prefix(logs)
        tables = [_columns(engine.parquet(log.log.parquet), log, own) for log in logs]
        self.count = sum(log.log.rows for log in logs)
        if not self.count:
            raise logs[0].log.file.error("has no rows", code="table.empty")
        if where is not None:
            tables = [where.keep(table, f"rows_{number}") for number, table in enumerate(tables)]
        fraction = any(f"{own}time" in table.columns and table[f"{own}time"].type().is_floating() for table in tables)
        types = {role: "string" if text[role] else "int64" for role in ("user", "item")}
        types |= _TYPES | {"time": "float64" if fraction else "int64"}
        tables = [_typed(table, types, own) for table in tables]
        table = ibis.union(*tables) if len(tables) > 1 else tables[0]
        if where is not None:
            table = where.computed(table)
            self.dropped(engine.number(table.count()), f'--where "{options.where}"', "where_dropped", counts)
        if options.min_rating is not None:
            enough = (table.rating >= options.min_rating) & ~table.rating.isnan()  # engines hold NaN for the largest
            table = table.filter(enough)
            left = engine.number(table.count())
            self.dropped(left, f"--min-rating {options.min_rating}", "low_ratings_dropped", counts)
        if weights is not None:
            table = table.filter(table.event.isin(list(weights)))
            left = engine.number(table.count())
            self.dropped(left, f"--event-weight {options.event_weight}", "other_events_dropped", counts)
            table = table.mutate(weight=table.event.cases(*weights.items()))
        if options.weight_column is not None:
            _check_weights(engine, table, logs)
        if "weight" in table.columns:
            table = table.mutate(weight=table.weight.cast("float32"))
        self.table = table.drop(*(name for name in ("rating", "event") if name in table.columns))

    def dropped(self, left: int, option: str, reason: str, counts: dict[str, int]) -> None:
        """Counts the rows that an option dropped.

        Raises:
            InputError: `rows.none`, nothing is left.
        """
        counts[reason] = self.count - left
        self.count = left
        if not left:
            raise InputError(f"{option}: no interaction is left", "rows.none")


def _prefix(logs: Sequence[LogRows]) -> str:
    """What columns by role begin with, and no column does that `--where` names: those keep their names."""
    prefix = "own_"
    while any(name.casefold().startswith(prefix) for log in logs for name in log.named):
        prefix = f"_{prefix}"
    return prefix


def _columns(table: ir.Table, log: LogRows, own: str) -> ir.Table:
    """The columns by role, whose names begin with `own`, beside those that `--where` names."""
    columns = log.log.columns
    named = {name: table[name] for name in log.named}  # a copy has them under their own names
    roles = {f"{own}{role}": table[columns[role]] for role in log.roles}
    if log.label is not None:
        roles[f"{own}split"] = ibis.literal(log.label)
    return table.select(**named, **roles)


def _typed(table: ir.Table, types: Mapping[str, str], own: str) -> ir.Table:
    """The columns by role alone, of the same types in every log."""
    roles = [name.removeprefix(own) for name in table.columns if name.startswith(own)]
    return table.select(**{role: table[f"{own}{role}"].cast(types[role]) for role in roles})


def _check_weights(engine: Engine, table: ir.Table, logs: Sequence[LogRows]) -> None:
    fine = table.weight.between(LEAST_WEIGHT, MOST_WEIGHT).fill_null(False)
    odd = table.weight.isnan().fill_null(True)  # said apart: the statistics of Parquet files are silent about NaN
    wrong = engine.number(table.filter(odd | ~fine).count())
    if wrong:
        rows = engine.number(table.count())
        message = f"{wrong:,} of {rows:,} weights are not finite and above 0"
        raise first_wrong(logs, "weight", _wrong_weights, message, "weight.invalid")


def _wrong_weights(values: pa.Array) -> np.ndarray:
    fine = pc.and_(pc.greater_equal(values, LEAST_WEIGHT), pc.less_equal(values, MOST_WEIGHT))
    wrong: np.ndarray = pc.invert(pc.fill_null(fine, False)).to_numpy(zero_copy_only=False)
    return wrong
