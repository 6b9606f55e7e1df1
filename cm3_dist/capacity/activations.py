"""What a step and an evaluation hold at their highest, over rows of C * d floats: the backward pass of propagation.

In a step these live at once: everything that the encoder and the normalisations saved, the rows that entered, the sums
of their gradients, and two layers' gradients, one of them with the rows of other ranks beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cm3_dist.capacity.sizes import RankLoad, RankStep, Relation
from cm3_dist.config.settings import Settings
from cm3_dist.kernels.pair_sum import COLUMNS, ROWS
from cm3_dist.model.cm3 import FINAL_COLUMNS
from cm3_dist.model.dimensions import Widths
from cm3_dist.model.local_table import can_update
from cm3_dist.ranking.full_ranking import METRIC_BLOCK
from partition.folder.manifest import Manifest

FLOAT, INT64 = 4, 8
SMALL = 32 << 20  # a freed block up to this size stays with the process
SLERP = 6  # blocks of d floats an item that a slerp saves for its backward pass
PASSING = 8  # such blocks that encoding needs in passing; small ones stay with the process


@dataclass
class Live:
    """Bytes by name, and how many of them lie in blocks that glibc keeps."""

    named: dict[str, float] = field(default_factory=dict)
    small: float = 0.0

    def add(self, name: str, rows: float, width: float, count: float = 1) -> None:
        """`count` blocks of `rows` rows of `width` floats."""
        block = rows * width * FLOAT
        self.named[name] = self.named.get(name, 0.0) + count * block
        if block <= SMALL:
            self.small += count * block


def step_live(manifest: Manifest, settings: Settings, mode: str, world_size: int, step: RankStep) -> Live:
    """A training step."""
    live, widths = Live(), Widths.of(manifest, settings)
    row, dim, modalities = widths.row, widths.dim, manifest.modalities
    users, items = step.input_users, step.input_items
    # Rows that lie here: all of them as they are, or a copy of some; else looked up, and handed over.
    copied = 2 if not can_update(settings.tables) else 0 if mode == "exact" else 1
    live.add("user rows", users, row, 1 + copied)
    live.add("item rows", items, row)
    for modality in modalities:
        converted = modality.dtype != "float32" or settings.model.encoder_precision == "bfloat16"
        live.add("encoder", items, modality.dim, 1 if converted else 0)
        live.add("encoder", items, 4 * dim)
        live.add("encoder", items, dim)
    live.add("fusion", items, dim, 1 + SLERP * len(modalities) * (len(modalities) - 1) / 2)
    if items * dim * FLOAT <= SMALL:
        live.add("fusion", items, dim, PASSING)
    propagation = max(_forward(step), _backward(step, mode), key=lambda peak: sum(peak))
    for rows in propagation:
        live.add("propagation", rows, row)
    _loss(live, settings, widths, world_size, step)
    return live


def _sizes(step: RankStep) -> tuple[list[float], list[float]]:
    """Rows of the frontiers F_1, ... F_L: users and items."""
    users = [*(layer.rows for layer in step.user_from_item[1:]), step.input_users]
    items = [*(layer.rows for layer in step.item_from_user[1:]), step.input_items]
    return users, items


def _with_halo(own: float, relation: Relation) -> tuple[float, ...]:
    """Own and fetched rows side by side, the fetched ones, and what was sent."""
    halo = relation.halo
    return (own + halo.received, halo.received, halo.sent) if halo.received else ()


def _forward(step: RankStep) -> tuple[float, ...]:
    peak: tuple[float, ...] = ()
    users, items = _sizes(step)
    current: tuple[float, ...] = ()  # the deepest rows are the ones that entered
    for k in reversed(range(len(step.user_from_item))):
        to_user, to_item = step.user_from_item[k], step.item_from_user[k]
        first = (*current, to_user.rows, *_with_halo(items[k], to_user))
        second = (*current, to_user.rows, to_item.rows, *_with_halo(users[k], to_item))
        peak = max(peak, first, second, key=lambda rows: sum(rows))
        current = (to_user.rows, to_item.rows)
    return peak


def _backward(step: RankStep, mode: str) -> tuple[float, ...]:
    totals = (step.input_users, step.input_items)
    peak: tuple[float, ...] = totals
    users, items = _sizes(step)
    for k, (to_user, to_item) in enumerate(zip(step.user_from_item, step.item_from_user, strict=True)):
        gradients = (to_user.rows, to_item.rows, users[k], items[k])
        if mode == "exact":  # pulls, each of the other relation's sources
            widest = max(_with_halo(items[k], to_user), _with_halo(users[k], to_item), key=lambda rows: sum(rows))
        else:  # rows to give back, and those that come
            widest = tuple(relation.halo.received + relation.halo.sent for relation in (to_user, to_item))
        peak = max(peak, (*totals, *gradients, *widest), key=lambda rows: sum(rows))
    return peak


def _loss(live: Live, settings: Settings, widths: Widths, world_size: int, step: RankStep) -> None:
    """The batch's rows, all ranks' rows of one term with what they are multiplied with, blocks of pairs."""
    ranks = world_size if settings.loss.scope == "global" else 1
    item_width = widths.row + (widths.dim if settings.loss.item_uniformity == "calibrated" else 0) + 1
    live.add("loss: the batch's rows", step.users + step.items + step.positive_halo.received, widths.row, 4)
    wide = max(step.most_users * (widths.row + 1), step.most_items * item_width)
    live.add("loss: rows of all ranks", ranks * wide, 1, 2)
    live.add("loss: gradients", step.most_users * (widths.row + 1) + step.most_items * item_width, 1, 2)
    live.add("loss: blocks of pairs", ROWS * COLUMNS, 1, 3)


def evaluation_live(manifest: Manifest, settings: Settings, load: RankLoad) -> Live:
    """Final rows of all users and items, then the ranking."""
    live, widths, options = Live(), Widths.of(manifest, settings), settings.evaluate
    users, items = float(load.user_rows), float(load.item_rows)
    copied = 0 if can_update(settings.tables) else 2
    live.add("evaluation: final rows", users, widths.row, 1 + copied)
    live.add("evaluation: final rows", items, widths.row)
    layer = Relation(users, 0, load.user_from_item.halo), Relation(items, 0, load.item_from_user.halo)
    exact = RankStep(0, 0, 0, 0, [layer[0]] * 2, [layer[1]] * 2, [], users, items, layer[0].halo, 0, 0)
    propagation, columns = (users, items, *_forward(exact)), min(widths.row, FINAL_COLUMNS)
    samples = {"validation": options.users, "test": options.test_users}
    ranked = max(ranked_users(manifest, sample, split, load) for split, sample in samples.items())
    k, seen = max(options.ks), load.user_from_item.edges * ranked / max(load.users, 1)
    block, scored = min(options.user_block, ranked), min(options.item_block, items)
    ranking = Live()
    ranking.add("evaluation: ranked users", ranked, widths.row)
    ranking.add("evaluation: what they have seen", seen, 3 * INT64 / FLOAT)
    ranking.add("evaluation: best items", ranked, k * (1 + INT64 / FLOAT))
    ranking.add("evaluation: metrics", min(ranked, METRIC_BLOCK), k * 8 * INT64 / FLOAT)
    ranking.add("evaluation: scores", block, scored, 1.5)  # and what finding the best of them takes
    if sum(propagation) * columns * FLOAT >= sum(ranking.named.values()):
        for rows in propagation:
            live.add("evaluation: propagation", rows, columns)
        return live
    named = {name: live.named.get(name, 0) + found for name, found in ranking.named.items()}
    return Live(live.named | named, live.small + ranking.small)


def ranked_users(manifest: Manifest, sample: int | None, split: str, load: RankLoad) -> float:
    """Users of a rank that an evaluation ranks."""
    users = load.held_out[split][0]
    return users if sample is None else min(users, sample * load.users / max(manifest.users, 1))
