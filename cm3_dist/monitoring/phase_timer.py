"""Wall-clock time per phase of a step: planning, forward, backward and so on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Seconds per phase since the last `take`, and over the whole run in `total`.

    On a GPU, this is the time that launching the work takes, not the device's.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._latest: dict[str, float] = {}
        self.total: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds the block's time to `phase`."""
        begin = self._clock()
        try:
            yield
        finally:
            spent = self._clock() - begin
            self._latest[phase] = self._latest.get(phase, 0.0) + spent
            self.total[phase] = self.total.get(phase, 0.0) + spent

    def take(self) -> dict[str, float]:
        """Returns the seconds per phase since the last call."""
        latest, self._latest = self._latest, {}
        return latest
