"""How many threads a preparation uses, and work on several of them.

NumPy, hashlib, Arrow and faiss let other threads run while they work on large arrays, so threads share memory-mapped
columns without copies and without other processes. What is computed does not depend on how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import psutil

Item = TypeVar("Item")
Result = TypeVar("Result")


def count(threads: int | None) -> int:
    """The number that was asked for, or one per core that this process may use."""
    return threads or len(os.sched_getaffinity(0))


@contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Limits faiss, the BLAS of NumPy and Arrow to so many threads in the block; None leaves them as they are."""
    if threads is None:
        yield
        return
    import pyarrow as pa
    import threadpoolctl

    before = pa.cpu_count(), pa.io_thread_count()
    pa.set_cpu_count(threads)
    pa.set_io_thread_count(threads)
    try:
        with threadpoolctl.threadpool_limits(threads):
            yield
    finally:
        pa.set_cpu_count(before[0])
        pa.set_io_thread_count(before[1])


@contextmanager
def one_for_blas() -> Iterator[None]:
    """Keeps the BLAS of NumPy in the block on one thread: the last bits of its results depend on how many there are."""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


def at_once(threads: int, size: int) -> int:
    """How many of `threads` may work if each needs `size` bytes: together at most half of the memory that is free."""
    return max(1, min(threads, psutil.virtual_memory().available // 2 // max(size, 1)))


def each(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> list[Result]:
    """Calls `work` for every item on several threads; returns the results in the order of the items.

    Raises:
        Exception: the first that `work` raised, by the order of the items; items that nobody has begun are left out.
    """
    if threads == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="prepare") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            for future in futures:
                future.cancel()
        failed = [future for future in futures if not future.cancelled() and future.exception() is not None]
        return [future.result() for future in failed or futures]
