"""Settings of glibc's allocator."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks of up to 32 MiB (its limit) for the next step instead of unmapping them.

    Otherwise every activation of a step is mapped, zeroed page by page and unmapped again: a fifth of a step's time.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 1 << 30)
    except (OSError, AttributeError):
        return  # another C library; only slower
