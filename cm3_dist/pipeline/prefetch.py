"""An iterator that prefetches items in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Yields the items of an iterator, computed in a thread up to `depth` ahead; with 0 there is no thread.

    How many items are computed depends only on how many were taken, not on timing. So if computing an item is
    collective, ranks that took the same number have computed the same number when `close` returns. An exception of
    `items` is raised by `next`.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items, self._thread = items, None
        if depth == 0:
            return
        self._ready: queue.SimpleQueue[T | BaseException | None] = queue.SimpleQueue()
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        for _ in range(depth + 1):  # one item is being computed while `depth` wait
            self._orders.put(True)
        self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            return next(self._items)
        item = self._ready.get()
        if item is None:
            self._ready.put(None)  # for the next call
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        self._orders.put(True)
        return item

    def close(self) -> None:
        """Ends the thread after the items that were already ordered."""
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
