"""An iterator whose items are made in a thread, ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Yields what `items` yields, at most `depth` finished ones waiting; 0 makes each when it is asked for.

    How many are made depends on how many were taken, never on timing: where making one is collective, ranks that took
    equally many have made equally many when `close` returns. An exception of `items` is raised here.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items, self._thread = items, None
        if depth == 0:
            return
        self._ready: queue.SimpleQueue[T | BaseException | None] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        for _ in range(depth + 1):  # one is in the making while the others wait
            self._orders.put(True)
        self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            return next(self._items)
        item = self._ready.get()
        if item is None:
            self._ready.put(None)  # for whoever asks again
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        self._orders.put(True)
        return item

    def close(self) -> None:
        """Waits until the thread has made what was ordered before, and ends it."""
        if self._thread is not None:
            self._orders.put(False)
            self._thread.join()

    def _work(self) -> None:
        try:
            while self._orders.get():
                self._ready.put(next(self._items))
        except StopIteration:
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)
