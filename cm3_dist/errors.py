"""Exceptions that end a command in one line, and the exit codes of all commands."""

from __future__ import annotations

import signal

from partition.errors import InputError

__all__ = [
    "BAD_INPUT",
    "DONE",
    "INTERRUPTED",
    "LOST",
    "InputError",
    "Interrupted",
    "LostRankError",
    "NotFiniteError",
    "OutOfMemoryError",
]

DONE, BAD_INPUT = 0, 2
LOST = 69  # sysexits.h EX_UNAVAILABLE: another rank is gone, start again with --resume auto
INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: nothing is wrong, start it again with --resume


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A run that saved and stopped because of a signal; `entry_point` exits with INTERRUPTED.

    Args:
        signal_number: what arrived first, on whichever rank.
        step: steps done.
        checkpoint: name of what was saved.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after {step} steps, saved as {checkpoint}; go on with --resume")


class LostRankError(Exception):
    """Another rank ended or hangs, so that this one cannot go on; `entry_point` exits with LOST.

    Args:
        found: which one, and what is known of it.
        speaks: whether this rank says so for all that are left.
    """

    def __init__(self, found: str, speaks: bool) -> None:
        super().__init__(f"{found}; checkpoints are kept: start again, a training with --resume auto")
        self.speaks = speaks


class NotFiniteError(FloatingPointError, InputError):
    """A loss, a gradient or a row is NaN or infinite; all ranks raise it, for they look at the same values."""


class OutOfMemoryError(InputError):
    """This rank's memory ran out. Other ranks know nothing of it, so the rank that raises it speaks itself."""
