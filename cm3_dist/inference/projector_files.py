"""Writes item embeddings as files of TensorBoard's projector, labelled with external ids and other columns."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from cm3_dist.inference.id_map import IdMap
from cm3_dist.inference.id_tables import read_ids
from cm3_dist.inference.similar_items import ALL, require_channel
from cm3_dist.inference.trained_model import TrainedModel


@dataclass(frozen=True)
class Points:
    """The n items with the most training interactions, on every rank."""

    rows: np.ndarray  # [n] int64 global
    degree: np.ndarray  # [n] int64 training interactions
    vectors: np.ndarray  # [n, width] float32
    by: str  # "all" or a channel
    ids: IdMap

    def write(self, folder: Path, names: Path | None = None) -> None:
        """Writes the files to `folder`, in place of earlier ones. Not collective.

        Args:
            folder: below the folder that TensorBoard is started with.
            names: table with an item column and others, which become labels.

        Raises:
            InputError: `names` has no item column or no other one, or names none of the items.
        """
        header, labels = self._labels(names)
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(str(folder)) as board:
            board.add_embedding(self.vectors, labels, metadata_header=header, tag=f"items {self.by}")
            # TensorBoard shows no folder without an event.
            board.add_text("items", f"{len(labels)} items, {self.vectors.shape[1]} numbers each")

    def _labels(self, names: Path | None) -> tuple[list[str], list[list[str]]]:
        """Column names, and per item the values of `names`, its id and its training interactions."""
        own_header = ["item", "training users"]
        own = [list(map(str, pair)) for pair in zip(self.ids.take(self.rows).to_pylist(), self.degree, strict=True)]
        if names is None:
            return own_header, own
        found = read_ids(names, self.ids)
        others = [name for name in found.file.names if name != found.column]
        if not others:
            message = f"has the column {found.column!r} only, and nothing to label items by"
            raise found.file.error(message, code="names.no-label")
        table = found.file.read(others).to_pylist()
        line_of_row = {row: line for line, row in enumerate(found.find().tolist()) if row >= 0}
        lines = [line_of_row.get(row) for row in self.rows.tolist()]
        if all(line is None for line in lines):
            raise found.error("names none of the items shown", "names.no-item")
        words = [["?" if line is None else _word(table[line][name]) for name in others] for line in lines]
        return [*others, *own_header], [[*left, *right] for left, right in zip(words, own, strict=True)]


def popular_items(model: TrainedModel, count: int, by: str = ALL) -> Points:
    """The `count` items with the most training interactions, and their final embeddings, or one channel. Collective.

    Every rank holds `count` rows of every rank, not the whole catalogue.

    Raises:
        InputError: there is no such channel.
    """
    require_channel(model, by)
    degree = np.where(model.shard.is_item, model.shard.item_degree, -1)
    own = np.argsort(-degree, kind="stable")[:count]
    own = own[degree[own] >= 0]
    vectors = model.rows[1][own.tolist()].cpu().numpy()
    if by != ALL:
        dim = model.settings.model.dim
        vectors = vectors[:, model.channels.index(by) * dim :][:, :dim]
    mine = own + model.shard.first_item, degree[own], vectors
    gathered: list[Any] = [None] * model.runtime.world_size
    dist.all_gather_object(gathered, mine, group=model.runtime.control)
    rows, degree, vectors = (np.concatenate(column) for column in zip(*gathered, strict=True))
    kept = np.lexsort((rows, -degree))[:count]
    return Points(rows[kept], degree[kept], vectors[kept], by, model.item_ids)


def _word(value: object) -> str:
    """A value without tabs and line breaks, which separate the cells of the file."""
    return " ".join(str("?" if value is None else value).split()) or "?"
