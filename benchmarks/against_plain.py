"""The program against the plain implementation, each in one process with the same threads, alternating."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import reference
from benchmarks.plain_data import load_plain
from benchmarks.timing import Result, copy_bandwidth, peak_above_now, seconds
from cm3_dist.config.loading import load_settings
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.graph.full_graph import exact_propagation
from cm3_dist.graph.shard import load_shard
from cm3_dist.loss.uniformity import uniformity
from cm3_dist.pipeline.pair_weights import Pairs, PairWeight
from cm3_dist.training.trainer import Trainer

PLAIN_STEPS = 8  # of the plain implementation, timed; all of an epoch's take the same time
QUALITY = 0.099  # validation Recall@20


def settings_for(prepared: Path, threads: int, *overrides: str) -> Settings:
    """The settings of jobs/baby.yaml on another folder, and what a benchmark changes."""
    config = Path(__file__).parents[1] / "jobs" / "baby.yaml"
    own = [f"data.path={prepared}", f"machine.threads={threads}", "machine.device=cpu", "run.dir=runs/benchmark"]
    return load_settings(config, [*own, *overrides])


@contextmanager
def trainer_for(prepared: Path, threads: int, *overrides: str) -> Iterator[tuple[Trainer, Runtime]]:
    """A trainer in this process."""
    settings = settings_for(prepared, threads, *overrides)
    with distributed(settings.machine) as runtime:
        yield Trainer(settings, runtime), runtime


def plain_model(prepared: Path, seed: int = 2025) -> tuple[reference.PlainCM3, torch.optim.Optimizer]:
    """The plain implementation and its optimizer."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = reference.PlainCM3(load_plain(prepared))
    return model, torch.optim.Adam(model.parameters(), 1e-3)


def run_epoch(trainer: Trainer, epoch: int) -> float:
    """Trains an epoch. Returns its seconds."""
    begin = time.perf_counter()
    for plan in trainer.planner.epoch(epoch, 0, trainer.batches.steps):
        trainer.step(plan)
    return time.perf_counter() - begin


def epoch(prepared: Path, threads: int) -> Result:
    """Seconds an epoch, exact mode, batch 2048."""
    with trainer_for(prepared, threads) as (trainer, _):
        model, optimizer = plain_model(prepared)
        ours, plain = [run_epoch(trainer, 0)], []
        for number in range(1, 4):
            begin = time.perf_counter()
            reference.train_epoch(model, optimizer, steps=PLAIN_STEPS)
            plain.append((time.perf_counter() - begin) / PLAIN_STEPS * trainer.batches.steps)
            ours.append(run_epoch(trainer, number))
        mine, theirs = float(np.median(ours[1:])), float(np.median(plain))
    return Result("epoch", theirs / mine, 5, f"{mine:.1f} s against {theirs:.1f} s ({PLAIN_STEPS} steps, scaled)")


def time_to_quality(prepared: Path, threads: int) -> Result:
    """Seconds of training and validation until validation Recall@20 reaches QUALITY."""
    with trainer_for(prepared, threads) as (trainer, _):
        begin, mine, number = time.perf_counter(), 0.0, 0
        while mine < QUALITY and number < 20:
            run_epoch(trainer, number)
            mine = trainer.evaluator.rank(trainer.final_rows(), "validation")["recall@20"]
            number += 1
        taken = time.perf_counter() - begin
    model, optimizer = plain_model(prepared)
    begin, theirs, plain_number = time.perf_counter(), 0.0, 0
    while theirs < QUALITY and plain_number < 20:
        reference.train_epoch(model, optimizer)
        users, items = reference.final_rows(model)
        theirs = reference.evaluate(users, items, model.data, "validation")["recall@20"]
        plain_number += 1
    plain_taken = time.perf_counter() - begin
    detail = f"{taken:.1f} s, {number} epochs, {mine:.4f}; {plain_taken:.1f} s, {plain_number} epochs, {theirs:.4f}"
    return Result("time to quality", plain_taken / taken, 10, detail)


def all_pairs(count: int) -> Pairs:
    """Pairs of `count` distinct rows, each drawn once."""
    weight = PairWeight.of(count, count, 0)
    return Pairs(torch.arange(count), torch.ones(count), [0, count], [weight], weight, weight.scalars(), count, count)


def uniformity_speed(prepared: Path, threads: int) -> Result:
    """Calibrated uniformity of 4096 rows, 192 and 64 wide, forward and backward."""
    torch.set_num_threads(threads)
    x, s, ours = _unit_rows(4096)
    gram = seconds(lambda: _gram(x, s), repeats=3)
    plain = seconds(lambda: reference.calibrated_uniformity(x, s).backward(), repeats=2)
    mine = seconds(lambda: ours(x, s), repeats=5)
    detail = f"{mine * 1e3:.0f} ms against {plain:.2f} s; {gram / mine:.1f} x against indexing a Gram matrix instead"
    return Result("calibrated uniformity", plain / mine, 10, detail)


def uniformity_memory(prepared: Path, threads: int) -> Result:
    """GiB that the same term adds for 65,536 rows."""
    torch.set_num_threads(threads)
    x, s, ours = _unit_rows(65_536)
    begin = time.perf_counter()
    extra = peak_above_now(lambda: ours(x, s)) / 1024
    detail = f"{time.perf_counter() - begin:.1f} s; pdist and pairs would hold {65_536**2 / 2 * 8 / 2**30:.0f} GiB"
    return Result("uniformity memory, GiB", extra, 1, detail, at_most=True)


def _unit_rows(count: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(count, 192, generator=generator), dim=1).requires_grad_()
    s = F.normalize(torch.randn(count, 64, generator=generator), dim=1).requires_grad_()
    pairs = all_pairs(count)
    return x, s, lambda a, b: uniformity(a, pairs, 2.0, "global", None, b).backward()


def _gram(x: torch.Tensor, s: torch.Tensor, t: float = 2.0) -> None:
    """The kinder way to write it plainly: similarities from a matrix product, indexed by pairs."""
    first, second = torch.triu_indices(len(x), len(x), 1)
    phi = (s @ s.T)[first, second].clamp(0, 1)
    (-t * (torch.pdist(x).square() - 2 + 2 * phi)).exp().mean().log().backward()


def propagation(prepared: Path, threads: int) -> Result:
    """One user-item layer, forward and backward, 192 wide."""
    settings = settings_for(prepared, threads)
    with distributed(settings.machine) as runtime:
        shard = load_shard(prepared, 0, 1)
        operator = exact_propagation(shard, 1, 0, runtime.group, runtime.planning)
        users = torch.randn(shard.user_rows, 192, requires_grad=True)
        items = torch.randn(shard.item_rows, 192, requires_grad=True)
        gradients = torch.randn_like(users), torch.randn_like(items)
        data = load_plain(prepared)
        adjacency = reference.normalised_adjacency(data.train, data.users, data.items)
        rows = torch.randn(data.users + data.items, 192, requires_grad=True)
        gradient = torch.randn_like(rows)
        mine = seconds(lambda: torch.autograd.backward(operator(users, items), gradients), repeats=15)
        plain = seconds(lambda: (rows + torch.sparse.mm(adjacency, rows)).backward(gradient), repeats=5)
        edges = 2 * shard.manifest.train
        # Per product: a row of the source and its index and weight for every edge, and the destination rows written.
        moved = 2 * (edges * (192 * 4 + 12) + (len(users) + len(items)) * 192 * 4)
        copied = copy_bandwidth()
    detail = (
        f"{mine * 1e3:.1f} ms against {plain * 1e3:.1f} ms; {moved / mine / 1e9:.0f} GB/s of rows read and written, "
        f"a copy in memory reaches {copied / 1e9:.0f} GB/s (rows are read again from the cache)"
    )
    return Result("propagation layer", plain / mine, 3, detail)


def evaluation(prepared: Path, threads: int) -> Result:
    """Full ranking of all users over all items, all metrics, from final rows."""
    with trainer_for(prepared, threads) as (trainer, _):
        rows = trainer.final_rows()
        mine = seconds(lambda: trainer.evaluator.rank(rows, "validation"), repeats=5)
        model, _ = plain_model(prepared)
        users, items = reference.final_rows(model)
        plain = seconds(lambda: reference.evaluate(users, items, model.data, "validation"), repeats=1, warm=0)
    return Result("full evaluation", plain / mine, 20, f"{mine:.2f} s against {plain:.1f} s")
