"""The progress of a run: steps done and best evaluation. Saved with every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any


class Resume(str, Enum):
    """Which checkpoint a run resumes from."""

    NEWEST = "newest"  # which must be undamaged
    AUTO = "auto"  # the newest undamaged one; without any the run starts from the beginning


@dataclass
class Progress:
    """Steps done, and the best evaluation so far."""

    step: int = 0  # done over the whole run, which is also the number of the next one
    best_epoch: int = -1  # without validation interactions the last one that ended in a checkpoint
    best_metrics: dict[str, float] = field(default_factory=dict)  # validation
    without_better: int = 0  # evaluations since the best one
    evaluated_at: int = (
        0  # steps done at the last evaluation; if they were fewer than due, a resumed run evaluates first
    )

    def evaluated(self, epoch: int, metrics: dict[str, float], monitor: str) -> bool:
        """Records a validation. Returns whether it is the best so far; of equal ones the earlier epoch is the best."""
        self.evaluated_at = self.step
        if self.best_epoch >= 0 and metrics[monitor] <= self.best_metrics[monitor]:
            self.without_better += 1
            return False
        self.best_epoch, self.best_metrics, self.without_better = epoch, metrics, 0
        return True

    def unevaluated(self, epoch: int) -> None:
        """Records that the model is the state after `epoch`: there are no validation interactions to judge it by."""
        self.evaluated_at, self.best_epoch = self.step, epoch

    def exhausted(self, patience: int) -> bool:
        """Whether the last `patience` evaluations brought no improvement; a patience of 0 has no end."""
        return 0 < patience <= self.without_better

    def plain(self) -> dict[str, Any]:
        """The progress as a dict of JSON types."""
        return asdict(self)
