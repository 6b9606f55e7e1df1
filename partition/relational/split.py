"""Divides interactions into training, validation and test; the same seed gives the same split in every engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

import ibis
import ibis.expr.types as ir

from partition.errors import InputError
from partition.options import BuildOptions, SplitMethod
from partition.relational.engine import Engine
from partition.relational.hashing import HASH, with_hash
from partition.transform.dataset import TEST, TRAIN, VALIDATION

_TRAINS_ALL = (SplitMethod.RANDOM, SplitMethod.LEAVE_LAST_OUT, SplitMethod.NONE)  # leave every user something


@dataclass(frozen=True)
class Divided:
    """Interactions with their labels."""

    table: ir.Table  # user, item, split int8, and weight where there is one
    report: str = ""  # more for the line of the stage
    tied_time_share: float | None = None  # of LEAVE_LAST_OUT


def divide(
    engine: Engine, pairs: ir.Table, count: int, method: SplitMethod, options: BuildOptions, dated: bool
) -> Divided:
    """Labels every interaction.

    Args:
        engine: runs it.
        pairs: unique pairs: user, item, where the method asks for them split or time, and where there is one weight.
        count: how many there are.
        method: COLUMN and FILES take the labels as they are; RANDOM divides the interactions of each user 8:1:1;
            LEAVE_LAST_OUT takes the last one of each user for test and the one before for validation, by lot among
            those of one time; TIME takes everything from two times on; COLD_ITEMS holds out whole items; NONE leaves
            everything to training.
        options: with the seed, and the two times of TIME.
        dated: the times are microseconds since 1970, else numbers of any unit.

    Raises:
        InputError: too few items to hold out a tenth of them; times that are not times, or in the wrong order.
    """
    if method in (SplitMethod.COLUMN, SplitMethod.FILES):
        return Divided(pairs)
    if method is SplitMethod.NONE:
        return Divided(pairs.mutate(split=_label(TRAIN)))
    if method is SplitMethod.RANDOM:
        drawn = with_hash(pairs, options.seed, ("user", "item"))
        return Divided(_last_of_user(drawn, [drawn[HASH]], _tenths))
    if method is SplitMethod.LEAVE_LAST_OUT:
        drawn = with_hash(pairs, options.seed, ("user", "item"))
        share = _tied_share(engine, pairs, count)
        report = f"{share:.1%} of the interactions share their time with another one of their user"
        return Divided(_last_of_user(drawn, [drawn.time, drawn[HASH]], _one_each), report if share else "", share)
    if method is SplitMethod.TIME:
        return _by_time(engine, pairs, count, options, dated)
    assert method is SplitMethod.COLD_ITEMS
    return Divided(_cold_items(engine, pairs, options.seed))


def evaluable(table: ir.Table, method: SplitMethod) -> ir.Table:
    """Leaves out the validation and test interactions of users who have no training interaction."""
    if method in _TRAINS_ALL:
        return table
    trained = table.filter(table.split == TRAIN).select("user").distinct()
    return table.semi_join(trained, "user")


def _label(value: int) -> ir.IntegerValue:
    return ibis.literal(value, "int8")


Counts = tuple[ir.IntegerValue, ir.IntegerValue]


def _tenths(degree: ir.IntegerColumn) -> Counts:
    """Validation and test interactions of a user: a tenth each, at least one if one is left for training.

    Rounded as in MMRec's published splits: a fifth is held out, rounded down; an odd one goes to test.
    """
    tenth, fifth = (degree // 10).cast("int64"), (degree // 5).cast("int64")
    validation, test = ibis.greatest(tenth, 1), ibis.greatest(fifth - tenth, 1)
    return ibis.ifelse(degree >= 3, validation, 0), ibis.ifelse(degree >= 2, test, 0)


def _one_each(degree: ir.IntegerColumn) -> Counts:
    return ibis.ifelse(degree >= 3, 1, 0), ibis.ifelse(degree >= 2, 1, 0)


def _last_of_user(table: ir.Table, order: list[ir.Column], counts: Callable[[ir.IntegerColumn], Counts]) -> ir.Table:
    """By `order`, which ends with the hash, the last rows of a user are test, and those before them validation."""
    degrees = table.group_by("user").agg(degree=lambda own: own.count())
    # Within a user no two items below 2^31 share a hash.
    keys = order if table.item.type().is_int32() else [*order, table.item]
    latest = [ibis.desc(key) for key in keys]
    ranked = table.mutate(from_end=ibis.row_number().over(group_by=table.user, order_by=latest))
    joined = ranked.join(degrees, "user")
    validation, test = counts(joined.degree)
    label = ibis.cases(
        (joined.from_end < test, _label(TEST)),
        (joined.from_end < validation + test, _label(VALIDATION)),
        else_=_label(TRAIN),
    )
    return _labelled(joined, label)


def _labelled(table: ir.Table, label: ir.Value) -> ir.Table:
    """The columns of the result, with this label."""
    found = table.mutate(label=label)
    columns = {"user": found.user, "item": found.item, "split": found.label.cast("int8")}
    return found.select(**columns, **({"weight": found.weight} if "weight" in found.columns else {}))


def _tied_share(engine: Engine, pairs: ir.Table, count: int) -> float:
    """Share of the interactions whose time is that of another one of the same user."""
    groups = pairs.group_by("user", "time").agg(rows=lambda own: own.count())
    return engine.number(groups.filter(groups.rows > 1).rows.sum()) / count


def _by_time(engine: Engine, pairs: ir.Table, count: int, options: BuildOptions, dated: bool) -> Divided:
    given = {"--validate-from": options.validate_from, "--test-from": options.test_from}
    begin = []
    for (option, text), place in zip(given.items(), (count * 8 // 10, count * 9 // 10), strict=True):
        if text is None:
            row = pairs.select("time").order_by("time").limit(1, offset=place)
            begin.append(next(iter(engine.batches(row)))["time"][0].as_py())
        else:
            begin.append(_time(option, text, dated))
    if begin[1] < begin[0]:
        message = (
            f"--test-from {_shown(begin[1], dated)} is before --validate-from {_shown(begin[0], dated)}; give both"
        )
        raise InputError(message, "option.time")
    label = ibis.cases(
        (pairs.time >= begin[1], _label(TEST)), (pairs.time >= begin[0], _label(VALIDATION)), else_=_label(TRAIN)
    )
    report = f"validation from {_shown(begin[0], dated)}, test from {_shown(begin[1], dated)}"
    return Divided(_labelled(pairs, label), report)


def _time(option: str, text: str, dated: bool) -> float:
    """The value of a time in the unit of the log.

    Raises:
        InputError: `option.time`, it is no date although the log has dates, or no number although it has numbers.
    """
    try:
        if dated:
            moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
            moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
            since = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
            return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        number = float(text)
        if math.isfinite(number):
            return int(number) if number.is_integer() and abs(number) < 2**63 else number
    except ValueError:
        pass
    kind = "dates, so give one such as 2026-01-31" if dated else "numbers, so give one in their unit"
    raise InputError(f"{option} {text}: the times of the log are {kind}", "option.time")


def _shown(value: float, dated: bool) -> str:
    if not dated:
        return str(value)
    return str(datetime.fromtimestamp(value / 1_000_000, timezone.utc).replace(tzinfo=None))


def _cold_items(engine: Engine, pairs: ir.Table, seed: int) -> ir.Table:
    """A tenth of the items that have interactions is validation, another tenth is test."""
    items = pairs.select("item").distinct()
    warm = engine.number(items.count())
    tenth = round(warm / 10)
    if not tenth:
        message = f"--split cold-items: {warm} items with interactions are too few to hold out a tenth"
        raise InputError(message, "split.items")
    drawn = with_hash(items, seed, ("item",))
    drawn = drawn.mutate(place=ibis.row_number().over(order_by=[drawn[HASH], drawn.item]))
    label = ibis.cases(
        (drawn.place < tenth, _label(VALIDATION)), (drawn.place < 2 * tenth, _label(TEST)), else_=_label(TRAIN)
    )
    labels = drawn.select("item", cold=label)
    joined = pairs.join(labels, "item")
    return _labelled(joined, joined.cold)
