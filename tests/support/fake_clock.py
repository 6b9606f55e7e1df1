"""Time that passes only while somebody sleeps."""

from __future__ import annotations

from collections.abc import Callable


class FakeClock:
    """`clock` and `sleep` for what takes them as arguments; `on_sleep` runs at the end of every sleep."""

    def __init__(self, on_sleep: Callable[[], None] | None = None) -> None:
        self.seconds = 0.0
        self._on_sleep = on_sleep

    def clock(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self._on_sleep is not None:
            self._on_sleep()
