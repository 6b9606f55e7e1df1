"""Training on random walks against training on neighbour trees and on the exact sum: quality, rows read and time::

    python -m benchmarks.walk_training prepared/tiktok --way exact --way tree:2-1-1 --way walks:2 --json walks.json

Without the item graph, which is the same for all. A step's operator is drawn by `benchmarks.walks.Walks` instead of the
trainer's own sampler; the rest is the trainer as it is. Single process. Settings as in `python -m cm3_dist.train`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.against_plain import run_epoch, trainer_for
from benchmarks.timing import run_command, write_json
from benchmarks.walks import Walks
from cm3_dist.distributed.seeding import Stream, key
from cm3_dist.graph.lightgcn import Propagation
from cm3_dist.graph.neighbor_sampling import Sample, Sampler
from cm3_dist.graph.shard import Shard
from cm3_dist.graph.sparse_ops import Csr
from cm3_dist.training.trainer import Trainer
from partition.errors import InputError

SETTINGS = ["propagation.item_item_layers=0", "machine.prefetch=0"]  # drawing and computing in turn: their times add up


@dataclass(frozen=True)
class Trained:
    """One run."""

    way: str
    seed: int
    recall: float  # validation Recall@20, the best epoch's
    input_rows: float  # share of all nodes that a step reads, mean of ten steps
    seconds: float  # of training, an epoch; mean of all but the first


@dataclass(frozen=True)
class Walked(Propagation):
    """Ego rows of the nodes read -> rows of the batch, by one matrix for all layers."""

    forward: Csr  # [batch users; batch items] from [users read; items read]
    adjoint: Csr
    batch_users: int

    def __call__(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """See `Propagation`."""
        rows = _Times.apply(torch.cat([users, items]), self)
        return rows[: self.batch_users], rows[self.batch_users :]


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, operator: Walked) -> Tensor:  # type: ignore[override]
        ctx.operator = operator
        return operator.forward.times(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.operator.adjoint.times(gradient.contiguous()), None


class WalkSampler(Sampler):
    """Draws a step's operator by `walks` walks of `layers` steps from every node of the batch. One rank."""

    def __init__(self, shard: Shard, walks: int, layers: int, seed: int) -> None:
        self._shard, self._seed = shard, seed
        self._walks, self._count, self._layers = Walks(shard), walks, layers

    def draw(self, batch_users: np.ndarray, batch_items: np.ndarray, epoch: int, step: int) -> Sample:
        """See `Sampler.draw`."""
        first_item = self._shard.user_rows
        rng = np.random.default_rng(key(Stream.NEIGHBOURS, self._seed, epoch, step))
        seeds = np.concatenate([batch_users, batch_items + first_item])
        drawn, nodes = self._walks.draw(seeds, self._count, self._layers, rng)
        users = _first(batch_users, nodes[nodes < first_item])
        items = _first(batch_items, nodes[nodes >= first_item] - first_item)
        place = np.empty(first_item + self._shard.item_rows, np.int64)
        place[users] = np.arange(len(users))
        place[items + first_item] = len(users) + np.arange(len(items))
        forward = Csr(drawn.indptr, torch.from_numpy(place[nodes])[drawn.indices], drawn.values, len(nodes))
        return Sample(Walked([], [], forward, forward.transposed(), len(batch_users)), users, items)


def _first(batch: np.ndarray, read: np.ndarray) -> np.ndarray:
    """The rows read, those of the batch first: ascending local rows."""
    return np.concatenate([batch, np.setdiff1d(read, batch)])


def read_way(way: str) -> tuple[list[str], int]:
    """Settings of "exact", "tree:FANOUTS" (as tree:4-2-1) or "walks:N", and N, or 0 where there are no walks."""
    name, _, size = way.partition(":")
    if name == "tree" and size.replace("-", "").isdigit():
        return ["propagation.mode=sampled", f"propagation.fanouts=[{size.replace('-', ',')}]"], 0
    if name == "walks" and size.isdigit() and int(size) > 0:
        return ["propagation.mode=sampled"], int(size)
    if way == "exact":
        return ["propagation.mode=exact"], 0
    raise InputError(f"--way {way}: expected exact, tree:FANOUTS (tree:4-2-1) or walks:N")


def train(prepared: Path, way: str, seed: int, epochs: int, threads: int, overrides: list[str]) -> Trained:
    """One run, judged after every epoch."""
    own, walks = read_way(way)
    with trainer_for(prepared, threads, *SETTINGS, *overrides, *own, f"train.seed={seed}") as (trainer, _):
        if walks:
            propagation = trainer.settings.propagation
            if propagation.item_item_layers:
                raise InputError("propagation.item_item_layers: walks are drawn without the item graph; leave it at 0")
            trainer.planner.sampler = WalkSampler(trainer.shard, walks, propagation.user_item_layers, seed)
        recalls, taken = [], []
        for epoch in range(epochs):
            taken.append(run_epoch(trainer, epoch))
            recalls.append(trainer.evaluator.rank(trainer.final_rows(), "validation")["recall@20"])
        return Trained(way, seed, max(recalls), _share(trainer), mean(taken[1:] or taken))


def _share(trainer: Trainer) -> float:
    """Of all nodes that a step reads, mean of ten steps."""
    steps = min(10, trainer.batches.steps)
    return mean(plan.input_share for plan in trainer.planner.plans(0, 0, steps))


def main(
    prepared: Annotated[Path, typer.Argument(help="prepared folder")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE", help="settings")] = None,
    ways: Annotated[list[str] | None, typer.Option("--way", help="exact, tree:FANOUTS or walks:N; repeatable")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="seeds 1, 2, ...")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="of each run")] = 15,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
    output: Annotated[Path | None, typer.Option("--json", help="write the runs there")] = None,
) -> None:
    """Train with each way of drawing a step's propagation."""
    found, ways = [], ways or ["exact", "tree:4-2-1", "walks:5"]
    for way in ways:
        read_way(way)  # a wrong one is refused before an hour of training, not after it
    for seed in range(1, seeds + 1):
        for way in ways:
            one = train(prepared, way, seed, epochs, threads, overrides or [])
            found.append(one)
            print(
                f"{one.way:>12}  seed {one.seed}  recall@20 {one.recall:.4f}  rows read {one.input_rows:.3f}  "
                f"{one.seconds:.2f} s an epoch",
                flush=True,
            )
            write_json([asdict(each) for each in found], output)


if __name__ == "__main__":
    run_command(main)
