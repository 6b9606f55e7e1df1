"""External ids become row numbers, repeated pairs one pair, and all pairs their k-core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ibis
import ibis.expr.types as ir

from partition.columns_on_disk import index_type
from partition.errors import InputError
from partition.relational.engine import Engine


@dataclass(frozen=True)
class Users:
    """All users."""

    table: ir.Table  # id, number
    count: int


@dataclass(frozen=True)
class Pairs:
    """Interactions by row number; each pair once."""

    table: ir.Table  # user, item: int32 or int64; and where there are any split int8, time, weight float32
    count: int
    users: Users
    items: ir.Table | None = None  # number, and its number in the catalogue (old); None if all items remain


def numbered(ids: ir.Table) -> ir.Table:
    """Numbers the distinct ids of a table with one column `id` in ascending order; text by its UTF-8 bytes."""
    distinct = ids.distinct()
    return distinct.mutate(number=ibis.row_number().over(order_by=distinct.id))


def merged(engine: Engine, rows: ir.Table, users: Users, items: ir.Table, item_count: int) -> Pairs:
    """Replaces ids by row numbers, and keeps each pair once.

    A pair gets its lowest split label, so that one that occurs in training and in test counts as training and no test
    interaction leaks; its earliest time; and its highest weight, so that weights of 1 change nothing.

    Args:
        engine: runs it.
        rows: user and item ids, and maybe split, time and weight; every item is among `items`.
        users: all of them.
        items: id, number.
        item_count: how many items there are.
    """
    kinds = {"user": index_type(users.count).__name__, "item": index_type(item_count).__name__}
    joined = _replaced(_replaced(rows, "user", users.table, "id", kinds["user"]), "item", items, "id", kinds["item"])
    pick = {"split": "min", "time": "min", "weight": "max"}
    values = {name: getattr(joined[name], how)() for name, how in pick.items() if name in joined.columns}
    grouped = joined.group_by("user", "item").agg(**values) if values else joined.distinct()
    table = engine.keep(grouped)
    return Pairs(table, engine.number(table.count()), users)


def k_core(engine: Engine, pairs: Pairs, k: int) -> Pairs:
    """The largest set of pairs in which every user and every item has at least `k`; then numbered without gaps.

    Raises:
        InputError: `option.kcore`, nothing is left.
    """
    table, count = pairs.table, pairs.count
    while True:
        core = table
        for node in ("user", "item"):
            degrees = table.group_by(node).agg(degree=lambda own: own.count())
            core = core.semi_join(degrees.filter(degrees.degree >= k), node)
        kept = engine.keep(core)
        left = engine.number(kept.count())
        engine.drop(table)
        table = kept
        if not left:
            raise InputError(f"--kcore {k}: no interaction is left", "option.kcore")
        if left == count:
            break
        count = left
    users, items = (engine.keep(_renumbered(table, node)) for node in ("user", "item"))
    renumbered = _replaced(table, "user", users, "old", table.user.type())
    renumbered = _replaced(renumbered, "item", items, "old", table.item.type())
    final = engine.keep(renumbered)
    engine.drop(table)
    named = pairs.users.table.rename(before="number").join(users, [("before", "old")]).select("id", "number")
    named = engine.keep(named)
    return Pairs(final, count, Users(named, engine.number(named.count())), items)


def _renumbered(table: ir.Table, node: str) -> ir.Table:
    """The numbers of the nodes that remain (`old`), and those they get (`number`)."""
    distinct = table.select(old=table[node]).distinct()
    return distinct.mutate(number=ibis.row_number().over(order_by=distinct.old))


def _replaced(table: ir.Table, column: str, numbers: ir.Table, key: str, kind: Any) -> ir.Table:
    """The table with the `number` of `key` in the place of `column`, as `kind`; rows without one are left out."""
    joined = table.join(numbers.select(key, "number"), [(column, key)])
    return joined.mutate(**{column: joined.number.cast(kind)}).select(*table.columns)
