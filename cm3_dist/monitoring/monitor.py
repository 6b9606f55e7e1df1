"""What a run shows while it runs: its log (run_log.py), the progress bar, phase times. On rank 0 only.

Steps count from 0 over the whole run. What is measured between two steps (an evaluation, say) is filed under the step
just done, in TensorBoard as in the JSON lines, so that a run resumed at step n keeps exactly what is filed below n.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from cm3_dist.config.settings import Settings
from cm3_dist.monitoring.event_log import RunLog
from cm3_dist.monitoring.nonfinite import LOSSES, Finiteness
from cm3_dist.monitoring.tensorboard import layout, session_start

GPU_LAG = 16  # steps that may be under way on a GPU before their values are read


@dataclass(frozen=True)
class _Step:
    """A step whose values may still be on their way from the device."""

    step: int
    epoch: int
    positives: int
    values: Tensor  # [7], as `Monitor.step` takes them
    scalars: dict[str, float]
    phases: dict[str, float]


class PhaseTimer:
    """Wall-clock seconds per phase since the last `take`, and over the whole run."""

    def __init__(self) -> None:
        self._now: dict[str, float] = {}
        self.total: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the block's time to `phase`."""
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
    """Writes TensorBoard events and JSON lines of a run. On ranks above 0 it only checks that losses are finite.

    Args:
        folder: of the run.
        settings: of the run.
        rank: this one.
        plan: how tables are cut, to be shown.
        steps_per_epoch: for the progress bar.
        resumed_at: steps done before this session; later ones are redone, and their lines are dropped.
        evaluated_at: steps done at the last evaluation that counts; later ones and the test are redone likewise.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        rank: int,
        *,
        plan: str,
        steps_per_epoch: int,
        resumed_at: int,
        evaluated_at: int,
    ) -> None:
        self._settings, self._rank = settings, rank
        self._finiteness = Finiteness(settings)
        self._steps_per_epoch = steps_per_epoch
        self._waiting: list[_Step] = []
        self._epoch, self._epoch_positives, self._epoch_began, self._last_loss = 0, 0, 0.0, float("nan")
        self._epoch_sum, self._epoch_steps = torch.zeros(6, dtype=torch.float64), 0
        self._log: RunLog | None = None
        self._bar: tqdm[Any] | None = None
        if rank:
            return
        self._log = RunLog(folder, resumed_at, evaluated_at)
        self._process = psutil.Process()
        self._log.text("settings", _table(settings.plain()), resumed_at)
        self._log.text("sharding plan", "```\n" + plan + "\n```", resumed_at)
        self._log.layout(layout(settings), session_start(settings))

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is None:
            return
        if kind is None:
            self.flush()
        if self._bar is not None:
            self._bar.close()
        self._log.close()
        if kind is None:
            self._log.check()

    def failed(self) -> bool:
        """Whether something could not be written; on rank 0 only, so that all ranks had better agree on `check`."""
        return self._log is not None and self._log.failed()

    def check(self) -> None:
        """Raises InputError when something could not be written."""
        if self._log is not None:
            self._log.check()

    def begin_epoch(self, epoch: int, first_step: int) -> None:
        """Starts the epoch's progress bar; on anything but a terminal there is none, and `end_epoch` prints a line."""
        self._epoch, self._epoch_positives, self._epoch_began = epoch, 0, time.perf_counter()
        self._epoch_sum, self._epoch_steps = torch.zeros_like(self._epoch_sum), 0
        if self._rank == 0:
            bar = tqdm(
                desc=f"epoch {epoch}",
                total=self._steps_per_epoch,
                initial=first_step,
                unit="step",
                disable=None,
                leave=False,
            )
            self._bar = bar

    def step(
        self, step: int, epoch: int, positives: int, losses: Tensor, scalars: dict[str, float], phases: dict[str, float]
    ) -> None:
        """Takes note of a step.

        Args:
            step: counted over the whole run.
            epoch: its epoch.
            positives: over all ranks.
            losses: [7] loss, alignment, user uniformity, item uniformity, norms of the dense and table gradients, and
                `StepResult.origin`; read only every `run.log_every` steps, on a GPU every GPU_LAG at least: reading
                waits for the device.
            scalars: further values by TensorBoard tag.
            phases: seconds per phase.

        Raises:
            NotFiniteError: a loss term or gradient is not finite, and such steps are not to be skipped, or no more of
                them; names the term, the step, the rank and the setting to change.
        """
        self._waiting.append(_Step(step, epoch, positives, losses.detach(), scalars, phases))
        self._epoch_positives += positives
        if self._bar is not None:
            self._bar.update()
        lag = GPU_LAG if losses.is_cuda else 1
        if len(self._waiting) >= max(lag, self._settings.run.log_every):
            self.flush()

    def end_epoch(self) -> None:
        """Writes what is waiting and closes the bar."""
        self.flush()
        if self._bar is None or self._log is None:
            return
        self._log.flush_board()
        if self._bar.disable:
            seconds = time.perf_counter() - self._epoch_began
            speed = self._epoch_positives / seconds
            loss = f"loss {self._last_loss:.4f}"
            print(f"epoch {self._epoch:3d}  {loss}  {speed:,.0f} positives/s  {seconds:.1f} s", flush=True)
        self._bar.close()
        self._bar = None

    def evaluation(self, step: int, epoch: int, split: str, metrics: dict[str, float], note: str = "") -> None:
        """Takes note of an evaluation, after `step` steps, and prints one line."""
        if self._log is None:
            return
        self.scalars(step, {f"metrics-{split}/{name}": value for name, value in metrics.items()})
        self._log.flush_board()
        self._log.evaluation({"step": step - 1, "epoch": epoch, "split": split, **metrics})
        watched = self._settings.evaluate.monitor
        tqdm.write(f"epoch {epoch:3d}  {split} {watched} {metrics[watched]:.4f}{note}", file=sys.stdout)
        sys.stdout.flush()

    @property
    def skipped(self) -> int:
        """Steps of this session that were not finite and were skipped."""
        return self._finiteness.skipped

    def epoch_means(self) -> dict[str, float] | None:
        """Loss terms as means over this session's steps of the epoch; None without any, and on ranks above 0."""
        if self._rank or not self._epoch_steps:
            return None
        return dict(zip(LOSSES, (self._epoch_sum / self._epoch_steps).tolist(), strict=False))

    def warn(self, step: int, line: str) -> None:
        """Shows a warning after `step` steps, on stderr and in TensorBoard."""
        if self._log is not None:
            tqdm.write(f"warning: {line}", file=sys.stderr)
            self._log.text("warnings", line, step - 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes values by tag, measured after `step` steps."""
        if self._log is not None:
            self._log.scalars(step - 1, values)

    def flush(self) -> None:
        """Writes what is waiting, and waits for it. A checkpoint taken now finds every step before it on the disk.

        Raises:
            FloatingPointError: as `step`; so what is saved after a flush is sound.
        """
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        values = torch.stack([entry.values for entry in waiting]).double().cpu()
        finite = torch.isfinite(values).all(1)
        try:
            for entry, row, sound in zip(waiting, values, finite.tolist(), strict=True):
                if not sound:
                    self.warn(entry.step + 1, self._finiteness.skip(entry.step, entry.epoch, row.tolist()))
                if self._log is not None:
                    self._write_step(self._log, entry, row.tolist())
                    self._epoch_sum += row[:6] if sound else 0
                    self._epoch_steps += sound
        finally:
            if self._log is not None:
                self._log.flush()
        if self._log is not None and finite.any():
            self._show(waiting, values[finite][-1, 0].item())

    def _write_step(self, log: RunLog, entry: _Step, values: list[float]) -> None:
        losses = dict(zip(LOSSES, values, strict=False))
        shown: dict[str, Any] = {name: value if math.isfinite(value) else None for name, value in losses.items()}
        if not all(map(math.isfinite, values)):
            shown["skipped"] = True
        line = {"step": entry.step, "epoch": entry.epoch, **shown, "seconds": entry.phases}
        log.step(line)
        if (entry.step + 1) % self._settings.run.log_every:
            return
        tags = {f"loss/{'total' if name == 'loss' else name}": value for name, value in losses.items()}
        tags |= {"gradient_norm/dense": values[4], "gradient_norm/tables": values[5], **entry.scalars}
        tags = {tag: value for tag, value in tags.items() if math.isfinite(value)}
        if self._settings.train.on_nan == "skip":
            tags["health/skipped_steps"] = self._finiteness.skipped
        tags |= {f"time/{name}": seconds for name, seconds in entry.phases.items()}
        tags["speed/interactions_per_second"] = entry.positives / max(sum(entry.phases.values()), 1e-9)
        tags["memory/resident_mib"] = self._process.memory_info().rss / 2**20
        if torch.cuda.is_available():
            tags["memory/cuda_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        self.scalars(entry.step + 1, tags)

    def _show(self, entries: list[_Step], loss: float) -> None:
        """Loss and speed beside the progress bar."""
        self._last_loss = loss
        if self._bar is None:
            return
        seconds = sum(sum(entry.phases.values()) for entry in entries)
        speed = sum(entry.positives for entry in entries) / max(seconds, 1e-9)
        self._bar.set_postfix({"loss": f"{loss:.4f}", "positives/s": f"{speed:,.0f}"}, refresh=False)


def _table(settings: dict[str, Any], prefix: str = "") -> str:
    rows = [] if prefix else ["| setting | value |", "|---|---|"]
    for name, value in settings.items():
        if isinstance(value, dict):
            rows.append(_table(value, f"{prefix}{name}."))
        else:
            rows.append(f"| {prefix}{name} | {value} |")
    return "\n".join(rows)
