"""The chain from logs to numbered, clean interactions; `partition.build` has its order.

union of the logs -> `--where`, `--min-rating`, weights (`rows`) -> users numbered, items found in the catalogue
(`number`) -> repeated pairs merged -> k-core (`clean`) -> training, validation, test (`split`) -> files (`export`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partition.options import BuildOptions
from partition.read.catalogue import Catalogue
from partition.relational.clean import Users, numbered
from partition.relational.engine import Engine
from partition.relational.rows import LogRows, Rows, first_wrong
from partition.relational.where import Where

_UNKNOWN = 10_000  # ids of unknown items that are fetched to find the first row


@dataclass(frozen=True)
class Numbered:
    """Interactions with known items by their external ids, and the numbers of these."""

    rows: ir.Table  # user, item: ids; maybe split, time and weight
    count: int
    users: Users
    items: ir.Table  # id, number; without those that were dropped
    item_count: int


def number(
    engine: Engine,
    logs: Sequence[LogRows],
    text: Mapping[str, bool],
    catalogue: Catalogue,
    options: BuildOptions,
    where: Where | None,
    weights: Mapping[str, float] | None,
    folder: Path,
    counts: dict[str, int],
    dropped: np.ndarray | None = None,
) -> Numbered:
    """Unites the logs, numbers their users, and finds their items in the catalogue.

    Args:
        engine: runs it.
        logs: the logs.
        text: "user"/"item" -> whether the ids are text.
        catalogue: its keys are of the same type.
        options: the command.
        where: its condition.
        weights: of events.
        folder: for the catalogue, as long as the engine runs.
        counts: collects how many rows were dropped, by reason.
        dropped: [items] bool: the items of the catalogue to leave out with their interactions; None for none.

    Raises:
        InputError: `features.missing`, an item is unknown; and those of `Rows`.
    """
    rows = Rows(engine, logs, text, options, where, weights, counts)
    path = folder / "items.parquet"
    pq.write_table(pa.table({"id": catalogue.keys, "number": np.arange(len(catalogue.keys))}), path)
    items = engine.parquet([str(path)])
    unknown = rows.table.anti_join(items, [("item", "id")])
    missing = engine.number(unknown.count())
    if missing and not options.drop_unknown_items:
        raise _unknown_item(engine, unknown, missing, rows.count, logs, catalogue)
    table = rows.table
    if options.drop_unknown_items:
        rows.dropped(rows.count - missing, "--drop-unknown-items", "unknown_items_dropped", counts)
        if missing:
            table = table.semi_join(items, [("item", "id")])
    kept = len(catalogue.keys)
    if dropped is not None:
        path, kept = folder / "kept_items.parquet", int(np.count_nonzero(~dropped))
        pq.write_table(pa.table({"id": catalogue.keys.filter(pa.array(~dropped)), "number": np.arange(kept)}), path)
        items = engine.parquet([str(path)])
        table = table.semi_join(items, [("item", "id")])
        rows.dropped(engine.number(table.count()), "--missing drop", "missing_interactions_dropped", counts)
    users = engine.keep(numbered(table.select(id=table.user)))
    count = engine.number(users.count())
    return Numbered(table, rows.count, Users(users, count), items, kept)


def _unknown_item(
    engine: Engine, unknown: ir.Table, missing: int, count: int, logs: Sequence[LogRows], catalogue: Catalogue
) -> Exception:
    """Names the first row of an unknown item; the engine, which has no order of rows, only counted them."""
    some = pa.Table.from_batches(engine.batches(unknown.select("item").distinct().limit(_UNKNOWN)))["item"]
    names = pa.chunked_array(some).cast(catalogue.keys.type).combine_chunks()

    def among(values: pa.Array) -> np.ndarray:
        found: np.ndarray = pc.is_in(values.cast(names.type), value_set=names).to_numpy(zero_copy_only=False)
        return found

    message = f"{missing:,} of {count:,} interactions are with an item that has no features ({catalogue.end})"
    remedy = "; --drop-unknown-items leaves them out"
    return first_wrong(logs, "item", among, message, "features.missing", remedy)
