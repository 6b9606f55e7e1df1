"""Memory that was freed but stays with the process."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Returns freed blocks to the system, where the C library can (glibc).

    glibc keeps freed blocks of up to 32 MiB, and every thread's arena its own: after steps on a large graph that is as
    much as the run holds otherwise, just when an evaluation wants large blocks of other sizes. Takes milliseconds, and
    the next steps fault their pages in again: for between phases, not between steps.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
