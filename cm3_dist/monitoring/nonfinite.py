"""Steps whose loss or gradient is not finite: they end the run, or are skipped and counted (`train.on_nan`).

Values that are not finite never reach the weights of a run that skips: the tables and the dense optimizer leave them
out on the device. Here they are only reported: on a GPU a few steps later, yet before a checkpoint is written.
"""

from __future__ import annotations

import math

from cm3_dist.config.settings import Settings
from cm3_dist.errors import NotFiniteError

LOSSES = ("loss", "alignment", "user_uniformity", "item_uniformity")
_NAMES = (*LOSSES, "the encoder's gradient", "the tables' gradient")
_USERS, _TABLE_GRADIENT = 2, 5  # places in _NAMES of what comes from the tables


class NonFiniteSteps:
    """Judges steps that are not finite, in the same way on every rank."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.skipped = 0

    def skip(self, step: int, epoch: int, values: list[float]) -> str:
        """Counts such a step and returns the warning; `values` [7] as in `Monitor.step`.

        Raises:
            NotFiniteError: steps are not to be skipped, or too many were.
        """
        train, rates = self._settings.train, self._rates(values)
        finding = _describe(step, epoch, values)
        if train.on_nan == "skip":
            self.skipped += 1
            if self.skipped <= train.max_skipped:
                return f"{finding}; left out, {self.skipped} of at most {train.max_skipped} steps; lower {rates}"
            finding += f", after train.max_skipped={train.max_skipped} such steps"
        raise NotFiniteError(
            f"{finding}; the last checkpoint is kept; start again with a lower {rates}", "training.not-finite"
        )

    def _rates(self, values: list[float]) -> str:
        """The settings to change, the more likely ones first."""
        settings = self._settings
        tables, dense = f"tables.lr (now {settings.tables.lr:g})", f"dense.lr (now {settings.dense.lr:g})"
        from_tables = _first(values) in (_USERS, _TABLE_GRADIENT)
        rates = f"{tables} or {dense}" if from_tables else f"{dense} or {tables}"
        if settings.model.encoder_precision != "float32":
            rates += ", or model.encoder_precision=float32"
        return rates


def _first(values: list[float]) -> int:
    """Index of the first value that is not finite; the total loss is last, because it is bad whenever a term is."""
    return next(i for i in (1, 2, 3, 4, 5, 0) if not math.isfinite(values[i]))


def _describe(step: int, epoch: int, values: list[float]) -> str:
    index, origin = _first(values), int(values[6])
    rank = f" on rank {origin}" if origin >= 0 else ""
    return f"step {step} (epoch {epoch}): {_NAMES[index]} is {values[index]}{rank}"
