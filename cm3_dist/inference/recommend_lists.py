"""Writes a file of top-K lists: of all trained users, of some, or of users and with items that training never saw."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from tqdm import tqdm

from cm3_dist.distributed.collectives import agree_on_error, everywhere
from cm3_dist.errors import InputError
from cm3_dist.inference.atomic_output import StagedOutput, stage_file
from cm3_dist.inference.cold_start import place_items
from cm3_dist.inference.cold_start_inputs import read_new_items, read_new_users, rows_with_new
from cm3_dist.inference.id_map import Ids
from cm3_dist.inference.id_tables import read_ids
from cm3_dist.inference.list_writers import WRITERS, join
from cm3_dist.inference.top_k_lists import (
    Catalogue,
    TopKLists,
    candidate_mask,
    new_user_lists,
    table_schema,
    trained_users,
    user_lists,
)
from cm3_dist.inference.trained_model import TrainedModel


@dataclass(frozen=True)
class ListFile:
    """The lists, in one file per rank."""

    staged: StagedOutput
    parts: list[Path]
    users: int  # with a list
    entries: int
    untrained: int  # users without a training interaction, who are left out

    def summary(self, k: int) -> str:
        """What was written, in one or two lines."""
        lines = [f"{self.staged.path}: top {k} of {self.users:,} users, {self.entries:,} entries"]
        if self.untrained:
            lines += [f"left out: {self.untrained:,} users without a training interaction, whose rows mean nothing"]
        return "\n".join(lines)

    def finish(self) -> None:
        """Joins the files and publishes the result. Not collective; only rank 0 does anything.

        Raises:
            InputError: the file cannot be written.
        """
        if self.staged.is_rank_0:
            with self.staged.writing():
                join(self.parts, self.staged.folder / self.staged.path.name)
                self.staged.publish()


def write_lists(
    model: TrainedModel,
    out: Path,
    *,
    users: Path | None = None,
    k: int = 20,
    exclude_seen: bool = True,
    exclude_held_out: bool = False,
    items: Path | None = None,
    new_items: Path | None = None,
    new_users: Path | None = None,
    overwrite: bool = False,
) -> ListFile:
    """Writes the lists; `ListFile.finish` makes the file appear. Collective.

    Users come in the order of the prepared folder, new users in the order of their file.

    Args:
        model: the model.
        out: file to write; its extension (.parquet or .jsonl) is the format.
        users: table of user ids; None for all trained users.
        k: length of a list.
        exclude_seen: leave out training items, as evaluation does; for new users the items of their own list.
        exclude_held_out: leave out validation and test items as well.
        items: table of the item ids that may be recommended; None for all.
        new_items: items without interactions, by their features (`read_new_items`): recommended as well.
        new_users: table of user and item ids: lists for these users instead of `users`.
        overwrite: whether to replace `out`.

    Raises:
        InputError: an option does not fit, an id is unknown, a table cannot be read, or `out` cannot be written.
    """
    check_options(out, users, new_users)
    runtime = model.runtime
    staged = stage_file(out, runtime, overwrite)
    with staged.writing():
        catalogue = read_catalogue(model, items, new_items)
        untrained = np.empty(0, np.int64)
        if new_users is not None:
            unseen = agree_on_error(runtime, lambda: read_new_users(new_users, model, catalogue.new_ids))
            total = len(unseen.ids)
            lists = new_user_lists(model, unseen, catalogue, k, exclude_seen=exclude_seen)
        else:
            rows = None if users is None else agree_on_error(runtime, lambda: read_ids(users, model.user_ids).rows())
            trained, untrained = trained_users(model, rows)
            total = len(trained)
            exclude = {"exclude_seen": exclude_seen, "exclude_held_out": exclude_held_out}
            lists = user_lists(model, trained, catalogue, k, **exclude)
        parts = [staged.folder / f"{rank:05d}{out.suffix}" for rank in range(runtime.world_size)]
        written, entries = _write_part(model, parts[runtime.rank], lists, total)
        counts = torch.tensor([written, entries, len(untrained)])
        dist.all_reduce(counts, group=runtime.control)
    return ListFile(staged, parts, *counts.tolist())


def recommend_table(
    model: TrainedModel,
    users: Ids | None,
    k: int,
    *,
    exclude_seen: bool,
    exclude_held_out: bool,
    items: Ids | None,
    new_items: Path | None,
    new_users: Path | None,
) -> pa.Table:
    """The lists of this rank's users as a table (`table_schema`). Collective.

    Arguments as in `write_lists`, except that `users` and `items` are external ids.

    Raises:
        InputError: an id is unknown, a user has no training interaction, or new items or users do not fit.
    """
    if users is not None and new_users is not None:
        raise InputError("users and new_users: ask for one of them at a time", "options.conflict")
    new = read_catalogue(model, None, new_items).new
    catalogue = Catalogue(candidate_mask(model, None if items is None else model.item_ids.rows(items)), new)
    if new_users is not None:
        lists = new_user_lists(
            model, read_new_users(new_users, model, catalogue.new_ids), catalogue, k, exclude_seen=exclude_seen
        )
    else:
        trained, untrained = trained_users(model, None if users is None else model.user_ids.rows(users))
        if users is not None and len(untrained):
            name = model.user_ids.take(untrained[:1] + model.shard.first_user)[0].as_py()
            message = f"user {name!r} has no training interaction, so its row means nothing"
            raise InputError(message, "users.untrained")
        exclude = {"exclude_seen": exclude_seen, "exclude_held_out": exclude_held_out}
        lists = user_lists(model, trained, catalogue, k, **exclude)
    schema = table_schema(model)
    return pa.concat_tables([schema.empty_table(), *(block.table(schema) for block in lists)])


def check_options(out: Path, users: object, new_users: object) -> None:
    """Raises InputError if the extension of `out` is no format, or `users` and `new_users` are both given."""
    if out.suffix not in WRITERS:
        message = f"{out}: unknown extension; lists are written as {' or '.join(WRITERS)}"
        raise InputError(message, "output.format")
    if users is not None and new_users is not None:
        raise InputError("users and new_users: ask for one of them at a time", "options.conflict")


def read_catalogue(model: TrainedModel, items: Path | None, new_items: Path | None) -> Catalogue:
    """All known and new items, or those of them that the table `items` names. Collective.

    Raises:
        InputError: an item is unknown, or the new items do not fit.
    """
    runtime, new = model.runtime, None
    if new_items is not None:
        with tempfile.TemporaryDirectory() as work:
            read = agree_on_error(runtime, lambda: read_new_items(new_items, model, Path(work)))
            new = place_items(model, read.ids, read.features, read.missing)
    if items is None:
        return Catalogue(candidate_mask(model, None), new)
    new_ids = None if new is None else new.ids
    rows = agree_on_error(runtime, lambda: rows_with_new(model, read_ids(items, model.item_ids), new_ids))
    is_new = rows >= model.manifest.item_rows
    chosen = None if new is None else new.only(rows[is_new] - model.manifest.item_rows, model)
    return Catalogue(candidate_mask(model, rows[~is_new]), chosen)


def _write_part(model: TrainedModel, path: Path, lists: Iterator[TopKLists], total: int) -> tuple[int, int]:
    """Writes this rank's file; returns users and entries. Collective: a rank that cannot write stops all."""
    runtime, schema = model.runtime, table_schema(model)
    users, entries = 0, 0
    disable = None if runtime.rank == 0 else True
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=total, desc="recommend", unit="user", disable=disable, leave=False))
        file = stack.enter_context(ExitStack())
        append = agree_on_error(runtime, lambda: file.enter_context(WRITERS[path.suffix](path, schema)))
        for block in lists:
            everywhere(runtime, partial(append, block), path)
            users, entries = users + len(block.users), entries + len(block.scores)
            bar.update(len(block.users))
        everywhere(runtime, file.close, path)
    return users, entries
