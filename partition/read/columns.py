"""The columns of a table by their usual names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from partition.errors import InputError
from partition.read.table_file import TableFile

Role = Literal["user", "item", "time", "split", "rating", "event"]
# In lower case: names are compared without case, and without a type behind a colon as in RecBole (user_id:token).
ALIASES: dict[Role, tuple[str, ...]] = {
    "user": ("user", "user_id", "userid", "uid", "reviewerid", "customer_id", "member_id", "visitorid"),
    "item": (
        *("item", "item_id", "itemid", "iid", "asin", "parent_asin", "sku", "product_id", "movieid", "business_id"),
        *("article_id", "news_id"),
    ),
    "time": ("timestamp", "time", "ts", "datetime", "date", "unixreviewtime", "event_time", "event_ts", "created_at"),
    "split": ("x_label", "split"),
    "rating": ("rating", "stars", "score", "overall"),
    "event": ("event", "event_type", "behavior", "behaviour", "action"),
}
# Amazon 2023: a product (parent_asin) comes in variants (asin); its catalogue lists products.
_STRONGER = {"asin": "parent_asin"}


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
    """The columns with a usual name for a role; not asin where there is parent_asin, the id of Amazon's catalogue."""
    found = {name: usual_name(name) for name in file.names if usual_name(name) in ALIASES[role]}
    return [name for name, usual in found.items() if _STRONGER.get(usual) not in found.values()]


def usual_name(column: str) -> str:
    """The name of a column as it is compared: in lower case and without RecBole's type."""
    return column.split(":")[0].strip().lower()


def item_column(file: TableFile, given: Mapping[Role, str | None]) -> str | None:
    """The id column of an items table: the given one, else the one with a usual name."""
    return column_of(file, "item", given) or column_of(file, "item", {})


def needed_columns(file: TableFile, roles: Sequence[Role], given: Mapping[Role, str | None]) -> dict[Role, str]:
    """The columns for some roles.

    Raises:
        InputError: one or more of them are missing, all in one error; or two columns have a usual name.
    """
    found = {role: column_of(file, role, given) for role in roles}
    missing = [role for role, column in found.items() if column is None]
    if missing:
        raise missing_column(file, missing[0], given, *missing[1:])
    return {role: column for role, column in found.items() if column is not None}


def missing_column(file: TableFile, role: Role, given: Mapping[Role, str | None], *others: Role) -> InputError:
    """The error for a table without a column for `role`, and for `others`."""
    roles = (role, *others)
    listed = ", ".join(file.names)
    usual = [role for role in roles if given.get(role) is None]
    wrong = [f"no column {given[role]!r} (--{role}-column)" for role in roles if role not in usual]
    absent = [f"no {role} column ({', '.join(ALIASES[role])})" for role in usual]
    options = " and ".join(f"--{role}-column" for role in usual)
    remedy = f"; name it with {options}" if len(usual) == 1 else f"; name them with {options}" if usual else ""
    message = f"{' and '.join([*wrong, *absent])}; the columns are {listed}{remedy}"
    return file.error(message, code="column.missing")
