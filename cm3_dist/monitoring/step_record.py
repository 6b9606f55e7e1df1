"""A training step as it is logged: its line in steps.jsonl and its scalars in TensorBoard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor

from cm3_dist.monitoring.nonfinite import LOSSES


@dataclass(frozen=True)
class StepRecord:
    """A step whose values may still be on their way from the device."""

    step: int  # counted over the whole run
    epoch: int
    positives: int  # of all ranks
    values: Tensor  # [7], see `Monitor.step`
    scalars: dict[str, float]  # further values by TensorBoard tag
    phases: dict[str, float]  # seconds per phase

    @property
    def seconds(self) -> float:
        """Time of all phases."""
        return sum(self.phases.values())

    def line(self, values: list[float]) -> dict[str, Any]:
        """The line of steps.jsonl; `values` is `self.values` on the host."""
        losses = dict(zip(LOSSES, values, strict=False))
        line: dict[str, Any] = {"step": self.step, "epoch": self.epoch}
        line |= {name: value if math.isfinite(value) else None for name, value in losses.items()}
        if not all(map(math.isfinite, values)):
            line["skipped"] = True
        return line | {"seconds": self.phases}

    def tags(self, values: list[float]) -> dict[str, float]:
        """TensorBoard's scalars, without those that are not finite; `values` as above."""
        total, alignment, user_uniformity, item_uniformity, dense_norm, table_norm, _ = values
        measured = {
            "loss/total": total,
            "loss/alignment": alignment,
            "loss/user_uniformity": user_uniformity,
            "loss/item_uniformity": item_uniformity,
            "gradient_norm/dense": dense_norm,
            "gradient_norm/tables": table_norm,
            **self.scalars,
        }
        tags = {tag: value for tag, value in measured.items() if math.isfinite(value)}
        tags |= {f"time/{name}": seconds for name, seconds in self.phases.items()}
        tags["speed/interactions_per_second"] = self.positives / max(self.seconds, 1e-9)
        tags["memory/resident_mib"] = psutil.Process().memory_info().rss / 2**20
        if torch.cuda.is_available():
            tags["memory/cuda_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return tags
