"""What a run prints: a progress bar per epoch on a terminal and a line per epoch otherwise; evaluations; warnings."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm


class Console:
    """Rank 0's output while training.

    Args:
        steps_per_epoch: for the progress bar.
        redraw: least seconds between two drawings of the bar.
    """

    def __init__(self, steps_per_epoch: int, redraw: float = 0.1) -> None:
        self._steps_per_epoch, self._redraw = steps_per_epoch, redraw
        self._epoch, self._positives, self._began, self._loss = 0, 0, 0.0, float("nan")
        self._bar: tqdm[Any] | None = None

    def begin_epoch(self, epoch: int, first_step: int) -> None:
        """Starts the progress bar of an epoch, of which `first_step` steps are done already."""
        self._epoch, self._positives, self._began = epoch, 0, time.perf_counter()
        self._bar = tqdm(
            desc=f"epoch {epoch}",
            total=self._steps_per_epoch,
            initial=first_step,
            unit="step",
            mininterval=self._redraw,
            disable=None,  # unless stderr is a terminal
            leave=False,
        )

    def step(self, positives: int) -> None:
        """Advances the bar by a step of that many positives."""
        self._positives += positives
        if self._bar is not None:
            self._bar.update()

    def show(self, loss: float, positives: int, seconds: float) -> None:
        """Shows the latest loss, and the speed of some steps, beside the bar."""
        self._loss = loss
        if self._bar is not None:
            speed = positives / max(seconds, 1e-9)
            self._bar.set_postfix({"loss": f"{loss:.4f}", "positives/s": f"{speed:,.0f}"}, refresh=False)

    def end_epoch(self) -> None:
        """Removes the bar; without a terminal, prints a line instead."""
        if self._bar is None:
            return
        if self._bar.disable:
            seconds = time.perf_counter() - self._began
            speed = self._positives / seconds
            print(
                f"epoch {self._epoch:3d}  loss {self._loss:.4f}  {speed:,.0f} positives/s  {seconds:.1f} s", flush=True
            )
        self.close()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def evaluation(self, epoch: int, split: str, metric: str, value: float, note: str) -> None:
        """Prints the line of an evaluation."""
        tqdm.write(f"epoch {epoch:3d}  {split} {metric} {value:.4f}{note}", file=sys.stdout)
        sys.stdout.flush()

    def warning(self, line: str) -> None:
        """Prints a warning on stderr."""
        tqdm.write(f"warning: {line}", file=sys.stderr)
