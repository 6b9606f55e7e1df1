"""How far a run has come, and when it stops: part of every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Resume(str, Enum):
    """Which checkpoint a run resumes from."""

    NEWEST = "newest"  # which must be whole
    AUTO = "auto"  # the newest whole one, or none


@dataclass
class Progress:
    """Steps done, and the best evaluation so far."""

    step: int = 0  # over the whole run; the next one to do
    best_epoch: int = -1
    best_metrics: dict[str, float] = field(default_factory=dict)  # validation
    without_better: int = 0  # evaluations since the best
    evaluated_at: int = 0  # steps done at the last evaluation: a run stopped between the two evaluates first

    def evaluated(self, epoch: int, metrics: dict[str, float], monitor: str) -> bool:
        """Takes note of a validation; True when it is the best so far. A tie is not better: the earlier epoch stays."""
        self.evaluated_at = self.step
        if self.best_epoch >= 0 and metrics[monitor] <= self.best_metrics[monitor]:
            self.without_better += 1
            return False
        self.best_epoch, self.best_metrics, self.without_better = epoch, metrics, 0
        return True

    def exhausted(self, patience: int) -> bool:
        """Whether `patience` evaluations in a row brought nothing better."""
        return self.without_better >= patience

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
