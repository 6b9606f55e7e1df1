"""What a run shows while it runs: TensorBoard, steps.jsonl, the progress bar, phase times. Rank 0 only; others stay quiet."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from cm3_dist.config import Settings
from cm3_dist.run_folder import EVALUATIONS, STEPS, truncate_after

LOSSES = ("loss", "alignment", "user_uniformity", "item_uniformity")


class PhaseTimer:
    """Wall-clock seconds per phase since the last `take`, and over the whole run."""

    def __init__(self) -> None:
        self._now: dict[str, float] = {}
        self.total: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self._now[phase] = self._now.get(phase, 0.0) + spent
            self.total[phase] = self.total.get(phase, 0.0) + spent

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last call."""
        now, self._now = self._now, {}
        return now


class Monitor:
    """Writes TensorBoard events and JSON lines of one run. On ranks other than 0 it only checks that losses are finite."""

    def __init__(self, folder: Path, settings: Settings, rank: int, *, plan: str, steps_per_epoch: int, resumed_at: int) -> None:
        self._settings, self._rank = settings, rank
        self._steps_per_epoch = steps_per_epoch
        self._waiting: list[tuple[int, int, int, Tensor, dict[str, float], dict[str, float]]] = []
        self._steps: TextIO | None = None
        self._bar: tqdm[Any] | None = None
        if rank:
            return
        for name in (STEPS, EVALUATIONS):
            truncate_after(folder / name, resumed_at - 1)
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter  # slow to import; only here

        purge = resumed_at if resumed_at else None
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self._steps = (folder / STEPS).open("a", encoding="utf-8")
        self._evaluations = (folder / EVALUATIONS).open("a", encoding="utf-8")
        self._process = psutil.Process()
        if not resumed_at:
            self._board.add_text("settings", _table(settings.plain()))
            self._board.add_text("sharding plan", "```\n" + plan + "\n```")

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._rank:
            return
        if kind is None:
            self._flush()
        if self._bar is not None:
            self._bar.close()
        assert self._steps is not None
        self._steps.close()
        self._evaluations.close()
        self._board.close()

    def begin_epoch(self, epoch: int, first_step: int) -> None:
        """Starts the epoch's progress bar; on anything but a terminal there is none, and `evaluation` prints a line."""
        if self._rank == 0:
            bar = tqdm(desc=f"epoch {epoch}", total=self._steps_per_epoch, initial=first_step, unit="step", disable=None, leave=False)
            self._bar = bar

    def step(self, step: int, epoch: int, positives: int, losses: Tensor, scalars: dict[str, float], phases: dict[str, float]) -> None:
        """Takes note of a step.

        Args:
            step: counted over the whole run.
            epoch: its epoch.
            positives: over all ranks.
            losses: [6] loss, alignment, user uniformity, item uniformity, norms of the dense and the table gradient;
                read only every `run.log_every` steps, so that no step waits for the device.
            scalars: further values by TensorBoard tag.
            phases: seconds per phase.

        Raises:
            FloatingPointError: a loss term or gradient is not finite; names the term and the step.
        """
        self._waiting.append((step, epoch, positives, losses.detach(), scalars, phases))
        if self._bar is not None:
            self._bar.update()
        if len(self._waiting) >= self._settings.run.log_every:
            self._flush()

    def end_epoch(self) -> None:
        """Writes what is waiting and closes the bar."""
        self._flush()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def evaluation(self, step: int, epoch: int, split: str, metrics: dict[str, float], note: str = "") -> None:
        """Takes note of an evaluation, after `step` steps, and prints one line."""
        if self._rank:
            return
        for name, value in metrics.items():
            self._board.add_scalar(f"metrics-{split}/{name}", value, step)
        self._evaluations.write(json.dumps({"step": step - 1, "epoch": epoch, "split": split, **metrics}) + "\n")
        self._evaluations.flush()
        watched = self._settings.evaluate.monitor
        tqdm.write(f"epoch {epoch:3d}  {split} {watched} {metrics[watched]:.4f}{note}", file=sys.stdout)
        sys.stdout.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes values by tag."""
        if self._rank == 0:
            for tag, value in values.items():
                self._board.add_scalar(tag, value, step)

    def _flush(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        values = torch.stack([entry[3] for entry in waiting]).double().cpu()
        _check_finite(values, waiting[0][0])
        if self._steps is None:
            return
        for (step, epoch, positives, _, scalars, phases), row in zip(waiting, values.tolist(), strict=True):
            losses = dict(zip(LOSSES, row, strict=False))
            self._steps.write(json.dumps({"step": step, "epoch": epoch, **losses, "seconds": phases}) + "\n")
            tags = {f"loss/{'total' if name == 'loss' else name}": value for name, value in losses.items()}
            tags |= {"gradient_norm/dense": row[4], "gradient_norm/tables": row[5], **scalars}
            tags |= {f"time/{name}": seconds for name, seconds in phases.items()}
            tags["speed/interactions_per_second"] = positives / max(sum(phases.values()), 1e-9)
            self.scalars(step, tags)
        memory = {"memory/resident_mib": self._process.memory_info().rss / 2**20}
        if torch.cuda.is_available():
            memory["memory/cuda_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        self.scalars(waiting[-1][0], memory)
        self._steps.flush()
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{values[-1, 0]:.4f}", refresh=False)


def _check_finite(values: Tensor, first: int) -> None:
    if torch.isfinite(values).all():
        return
    names = (*LOSSES, "the encoder's gradient", "the tables' gradient")
    row, column = torch.nonzero(~torch.isfinite(values))[0].tolist()
    # The total is bad whenever a term is: name the term.
    column = next((c for c in range(1, len(names)) if not torch.isfinite(values[row, c])), column)
    raise FloatingPointError(f"step {first + row}: {names[column]} is {values[row, column].item()}; the last checkpoint is kept")


def _table(settings: dict[str, Any], prefix: str = "") -> str:
    rows = [] if prefix else ["| setting | value |", "|---|---|"]
    for name, value in settings.items():
        if isinstance(value, dict):
            rows.append(_table(value, f"{prefix}{name}."))
        else:
            rows.append(f"| {prefix}{name} | {value} |")
    return "\n".join(rows)
