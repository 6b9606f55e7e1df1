"""External ids become row numbers, repeated pairs one pair, and all pairs their k-core."""

from __future__ import annotations

from dataclasses import dataclass

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
    joined = rows.join(users.table, rows.user == users.table.id)
    joined = joined.select(rows, user_number=users.table.number.cast(kinds["user"]))
    joined = joined.join(items, joined.item == items.id).select(
        **{name: joined[name] for name in rows.columns if name not in ("user", "item")},
        user=joined.user_number,
        item=items.number.cast(kinds["item"]),
    )
    pick = {"split": "min", "time": "min", "weight": "max"}
    values = {name: getattr(joined[name], how)() for name, how in pick.items() if name in joined.columns}
    grouped = joined.group_by("user", "item").agg(**values) if values else joined.distinct()
    table = engine.keep(grouped)
    return Pairs(table, engine.number(table.count()), users)


def k_core(engine: Engine, pairs: Pairs, k: int) -> Pairs:
    """The largest set of pairs in which every user and every item has at least `k`; then numbered without gaps.

    Raises:
        InputError: `option.kcore`, none is left.
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
    renumbered = table.join(users, table.user == users.old).select(table, user_number=users.number)
    renumbered = renumbered.join(items, renumbered.item == items.old).select(
        **{name: renumbered[name] for name in table.columns if name not in ("user", "item")},
        user=renumbered.user_number.cast(table.user.type()),
        item=items.number.cast(table.item.type()),
    )
    final = engine.keep(renumbered)
    engine.drop(table)
    known = pairs.users.table
    named = engine.keep(known.join(users, known.number == users.old).select(known.id, users.number))
    return Pairs(final, count, Users(named, engine.number(named.count())), items)


def _renumbered(table: ir.Table, node: str) -> ir.Table:
    """The numbers of the nodes that remain (`old`), and those they get (`number`)."""
    distinct = table.select(old=table[node]).distinct()
    return distinct.mutate(number=ibis.row_number().over(order_by=distinct.old))
