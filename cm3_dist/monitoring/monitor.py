"""Records a run while it trains: collects steps, checks that they are finite, then logs and shows them on rank 0.

Steps count from 0 over the whole run. What is measured between two steps, such as an evaluation, is filed under the
step just done, in TensorBoard as in the JSON lines; so a run resumed at step n keeps exactly what is filed below n.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from cm3_dist.config.loading import flat
from cm3_dist.config.settings import Settings
from cm3_dist.monitoring.console import Console
from cm3_dist.monitoring.event_log import EventLog
from cm3_dist.monitoring.nonfinite import LOSSES, NonFiniteSteps
from cm3_dist.monitoring.step_record import StepRecord
from cm3_dist.monitoring.tensorboard import charts, session_start

GPU_LAG = 16  # steps that may be under way on a GPU before their values are read


class Monitor:
    """Logs and shows a run. On ranks above 0 it only checks that losses are finite.

    Args:
        folder: of the run.
        settings: of the run.
        rank: this rank.
        plan: the sharding plan of the tables, as text.
        steps_per_epoch: for the progress bar.
        resumed_at: steps done before this session; the lines of later ones are dropped, because they are redone.
        evaluated_at: steps done at the last evaluation that counts; later ones and the test are redone too.

    Raises:
        InputError: a log is damaged or cannot be written.
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
        self._settings = settings
        self._nonfinite = NonFiniteSteps(settings)
        self._waiting: list[StepRecord] = []
        self._epoch_sum, self._epoch_steps = torch.zeros(len(LOSSES), dtype=torch.float64), 0
        self._log: EventLog | None = None
        self._console: Console | None = None
        if rank == 0:
            self._console = Console(steps_per_epoch)
            self._log = EventLog(folder, resumed_at, evaluated_at)
            self._log.text("settings", _table(settings), resumed_at)
            self._log.text("sharding plan", "```\n" + plan + "\n```", resumed_at)
            self._log.charts(charts(settings), session_start(settings))

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
        if self._console is not None:
            self._console.close()
        if self._log is not None:
            self._log.close()
        if kind is None:
            self.check()

    def failed(self) -> bool:
        """Whether something could not be written. Only rank 0 knows, so ranks have to agree before they `check`."""
        return self._log is not None and self._log.failed()

    def check(self) -> None:
        """Raises InputError if something could not be written."""
        if self._log is not None:
            self._log.check()

    def begin_epoch(self, epoch: int, first_step: int) -> None:
        """Starts an epoch, of which `first_step` steps are done already."""
        self._epoch_sum, self._epoch_steps = torch.zeros_like(self._epoch_sum), 0
        if self._console is not None:
            self._console.begin_epoch(epoch, first_step)

    def step(
        self, step: int, epoch: int, positives: int, losses: Tensor, scalars: dict[str, float], phases: dict[str, float]
    ) -> None:
        """Records a step.

        Args:
            step: counted over the whole run.
            epoch: its epoch.
            positives: of all ranks.
            losses: [7] loss, alignment, user uniformity, item uniformity, norms of the dense and table gradients, and
                `StepResult.origin`. They are read every `run.log_every` steps (on a GPU, every GPU_LAG at least),
                because reading waits for the device.
            scalars: further values by TensorBoard tag.
            phases: seconds per phase.

        Raises:
            NotFiniteError: a loss term or gradient is not finite and, by `train.on_nan`, ends the run; names the term,
                the step, the rank and the setting to change.
        """
        self._waiting.append(StepRecord(step, epoch, positives, losses.detach(), scalars, phases))
        if self._console is not None:
            self._console.step(positives)
        lag = GPU_LAG if losses.is_cuda else 1
        if len(self._waiting) >= max(lag, self._settings.run.log_every):
            self.flush()

    def end_epoch(self) -> None:
        """Writes the waiting steps and ends the progress bar."""
        self.flush()
        if self._log is not None and self._console is not None:
            self._log.flush_board()
            self._console.end_epoch()

    def evaluation(self, step: int, epoch: int, split: str, metrics: dict[str, float], note: str = "") -> None:
        """Records an evaluation after `step` steps and prints a line."""
        if self._log is None or self._console is None:
            return
        self.scalars(step, {f"metrics-{split}/{name}": value for name, value in metrics.items()})
        self._log.flush_board()
        self._log.evaluation({"step": step - 1, "epoch": epoch, "split": split, **metrics})
        watched = self._settings.evaluate.monitor
        self._console.evaluation(epoch, split, watched, metrics[watched], note)

    @property
    def skipped(self) -> int:
        """Steps of this session that were skipped because they were not finite."""
        return self._nonfinite.skipped

    def epoch_means(self) -> dict[str, float] | None:
        """Means of the loss terms over this session's steps of the epoch; None without any, and on ranks above 0."""
        if not self._epoch_steps:
            return None
        return dict(zip(LOSSES, (self._epoch_sum / self._epoch_steps).tolist(), strict=True))

    def warn(self, step: int, line: str) -> None:
        """Shows a warning after `step` steps, on stderr and in TensorBoard."""
        if self._log is not None and self._console is not None:
            self._console.warning(line)
            self._log.text("warnings", line, step - 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes values by tag, measured after `step` steps."""
        if self._log is not None:
            self._log.scalars(step - 1, values)

    def flush(self) -> None:
        """Writes the waiting steps. A checkpoint that is saved afterwards finds all earlier steps on disk.

        Raises:
            NotFiniteError: as `step`; so what is saved after a flush is sound.
        """
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        values = torch.stack([record.values for record in waiting]).double().cpu()
        finite = torch.isfinite(values).all(1)
        try:
            for record, row, sound in zip(waiting, values, finite.tolist(), strict=True):
                if not sound:
                    self.warn(record.step + 1, self._nonfinite.skip(record.step, record.epoch, row.tolist()))
                if self._log is not None:
                    self._write(self._log, record, row.tolist())
                    if sound:
                        self._epoch_sum += row[: len(LOSSES)]
                        self._epoch_steps += 1
        finally:
            if self._log is not None:
                self._log.flush()
        if self._console is not None and finite.any():
            positives, seconds = sum(record.positives for record in waiting), sum(record.seconds for record in waiting)
            self._console.show(values[finite][-1, 0].item(), positives, seconds)

    def _write(self, log: EventLog, record: StepRecord, values: list[float]) -> None:
        log.step(record.line(values))
        if (record.step + 1) % self._settings.run.log_every:
            return
        tags = record.tags(values)
        if self._settings.train.on_nan == "skip":
            tags["health/skipped_steps"] = self._nonfinite.skipped
        log.scalars(record.step, tags)


def _table(settings: Settings) -> str:
    """Settings as a Markdown table."""
    rows: dict[str, Any] = flat(settings.plain())
    return "\n".join(["| setting | value |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
