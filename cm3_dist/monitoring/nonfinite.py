"""Steps whose loss or gradient is not finite: they end the run, or are counted (`train.on_nan`).

What is not finite never reaches the weights of a run that skips: `model.tables` and `dense_adam` leave it out on the
device. Here it is only found out, a few steps later on a GPU, yet before any checkpoint is written.
"""

from __future__ import annotations

import math

from cm3_dist.config.settings import Settings
from cm3_dist.errors import NotFiniteError

LOSSES = ("loss", "alignment", "user_uniformity", "item_uniformity")
_NAMES = (*LOSSES, "the encoder's gradient", "the tables' gradient")


class Finiteness:
    """Judges steps that are not finite, the same on every rank."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.skipped = 0

    def skip(self, step: int, epoch: int, values: list[float]) -> str:
        """Counts such a step; `values` as `Monitor.step` takes them. Returns the warning.

        Raises:
            NotFiniteError: it is not to be skipped, or too many were.
        """
        train = self._settings.train
        told = _complaint(step, epoch, values)
        if train.on_nan == "stop":
            raise NotFiniteError(f"{told}; the last checkpoint is kept; start again with a lower {self._mend(values)}")
        self.skipped += 1
        if self.skipped > train.max_skipped:
            told += f", after train.max_skipped={train.max_skipped} such steps"
            raise NotFiniteError(f"{told}; the last checkpoint is kept; start again with a lower {self._mend(values)}")
        return f"{told}; left out, {self.skipped} of at most {train.max_skipped} steps; lower {self._mend(values)}"

    def _mend(self, values: list[float]) -> str:
        """The settings to change, the likelier ones first."""
        settings = self._settings
        rates = {"tables.lr": settings.tables.lr, "dense.lr": settings.dense.lr}
        # Users come from the tables, items and the dense gradient from the encoder.
        suspects = list(rates) if _first(values) in (2, 5) else list(rates)[::-1]
        mend = " or ".join(f"{name} (now {rates[name]:g})" for name in suspects)
        if settings.model.encoder_precision != "float32":
            mend += ", or model.encoder_precision=float32"
        return mend


def _first(values: list[float]) -> int:
    """Which value is the first that is not finite. The total is bad whenever a term is, so it comes last."""
    return next(i for i in (1, 2, 3, 4, 5, 0) if not math.isfinite(values[i]))


def _complaint(step: int, epoch: int, values: list[float]) -> str:
    index, origin = _first(values), int(values[6])
    rank = f" on rank {origin}" if origin >= 0 else ""
    return f"step {step} (epoch {epoch}): {_NAMES[index]} is {values[index]}{rank}"
