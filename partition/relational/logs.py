"""The logs of a command: what each column is for, and which split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from partition.errors import InputError
from partition.options import BuildOptions, SplitMethod
from partition.read.ids import IdKind
from partition.read.log import open_log
from partition.read.sources import Found, Role, column_of, needed_columns
from partition.read.usage import refuse_unread_labels
from partition.relational.rows import LEAST_WEIGHT, MOST_WEIGHT, LogRows
from partition.relational.where import Where
from partition.transform.dataset import TRAIN

_TIMED = (SplitMethod.LEAVE_LAST_OUT, SplitMethod.TIME)


def given_columns(options: BuildOptions) -> dict[Role, str | None]:
    """The names of columns that the command gives."""
    return {
        "user": options.user_column,
        "item": options.item_column,
        "time": options.time_column,
        "split": options.split_column,
        "rating": options.rating_column,
        "event": options.event_column,
    }


def event_weights(options: BuildOptions) -> dict[str, float] | None:
    """Parses `--event-weight buy=3,click=1`.

    Raises:
        InputError: `option.event-weight`, it is something else, or there is `--weight-column` too.
    """
    text = options.event_weight
    if text is None:
        return None
    if options.weight_column is not None:
        raise InputError(f"--event-weight {text}: choose it or --weight-column", "option.event-weight")
    weights: dict[str, float] = {}
    for pair in text.split(","):
        name, _, number = pair.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name.strip() or name.strip() in weights or not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
            message = f"--event-weight {text}: expected EVENT=WEIGHT, each event once, with weights above 0"
            raise InputError(message, "option.event-weight")
        weights[name.strip()] = weight
    return weights


def chosen_method(options: BuildOptions, found: Found) -> SplitMethod:
    """The method that AUTO stands for: FILES or COLUMN if the input says it, else RANDOM.

    Raises:
        InputError: `option.split`, the split is to be by files, but no file is for one; or files are given for one, but
            the split is to be another; `option.time`, a bound in time without that split.
    """
    method, files = options.split, bool(found.splits)
    for option, bound in (("--validate-from", options.validate_from), ("--test-from", options.test_from)):
        if bound is not None and method is not SplitMethod.TIME:
            raise InputError(f"{option} {bound}: add --split time, which alone has such a bound", "option.time")
    if method is SplitMethod.AUTO:
        if files:
            return SplitMethod.FILES
        given = given_columns(options)
        labelled = given["split"] is not None or any(column_of(file, "split", given) for file in found.interactions)
        return SplitMethod.COLUMN if labelled else SplitMethod.RANDOM
    if method is SplitMethod.FILES and not files:
        message = "--split files: no file is called train, valid or test; name them with --validation and --test"
        raise InputError(message, "option.split")
    if method is not SplitMethod.FILES and (options.validation or options.test):
        message = f"--split {method}: not together with --validation and --test, which are the split"
        raise InputError(message, "option.split")
    return method


def open_logs(
    found: Found, method: SplitMethod, options: BuildOptions, where: Where | None, folder: Path
) -> list[LogRows]:
    """Opens all logs, with the columns that are needed.

    Args:
        found: the files.
        method: of the split, which determines whether labels or times are needed; not AUTO.
        options: the command.
        where: its condition, which names columns too.
        folder: for the logs that have to be copied.

    Raises:
        InputError: a column that is missing; and what is wrong with the rows.
    """
    given = given_columns(options)
    needed: dict[Role, bool] = {
        "user": True,
        "item": True,
        "split": method is SplitMethod.COLUMN,
        "time": method in _TIMED,
        "rating": options.min_rating is not None,
        "event": options.event_weight is not None,
    }
    logs = []
    for file in found.interactions:
        usual = needed_columns(file, [role for role, wanted in needed.items() if wanted], given)
        roles: dict[str, str] = {str(role): column for role, column in usual.items()}
        if options.weight_column is not None:
            if options.weight_column not in file.names:
                message = (
                    f"no column {options.weight_column!r} (--weight-column); the columns are {', '.join(file.names)}"
                )
                raise file.error(message, code="column.missing")
            roles["weight"] = options.weight_column
        named = () if where is None else tuple(where.columns(file))
        refuse_unread_labels(file, options.where, [*roles.values(), *named])
        label = found.splits.get(file, TRAIN) if method is SplitMethod.FILES else None
        logs.append(LogRows(open_log(file, roles, named, folder), roles, named, label))
    dated = [own.log.dated for own in logs]
    if method in _TIMED and len(set(dated)) > 1:
        odd, first = logs[dated.index(not dated[0])].log.file, logs[0].log.file.place.name
        message = f"dates in one file and numbers in another ({first}); make both the same"
        raise odd.error(message, code="time.mixed")
    return logs


def id_kinds(logs: Sequence[LogRows], role: Literal["user", "item"]) -> list[IdKind]:
    """Of what kind the ids of users or items are in every log."""
    return [IdKind(own.log.file, own.roles[role], own.log.numeric[role], own.log.whole[role]) for own in logs]
