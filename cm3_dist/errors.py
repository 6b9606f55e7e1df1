"""Exceptions that end a command with one line, and the exit codes of all commands."""

from __future__ import annotations

import signal

from partition.errors import InputError

__all__ = [
    "BAD_INPUT",
    "DONE",
    "INTERRUPTED",
    "LOST",
    "AgreedError",
    "InputError",
    "Interrupted",
    "LostRankError",
    "NotFiniteError",
    "OutOfMemoryError",
]

DONE, BAD_INPUT = 0, 2
LOST = 69  # sysexits.h EX_UNAVAILABLE: another rank is gone; start again with --resume auto
INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: nothing is wrong; start again with --resume


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A run that saved and stopped because of a signal; `entry_point` exits with INTERRUPTED.

    Args:
        signal_number: the first signal, on whichever rank it arrived.
        step: steps done.
        checkpoint: name of the checkpoint that was saved.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after {step} steps, saved as {checkpoint}; continue with --resume")


class LostRankError(Exception):
    """Another rank ended or hangs, so this one cannot continue; `entry_point` exits with LOST.

    Args:
        reason: which rank, and what is known about it.
        is_reporter: whether this rank prints the error for all surviving ranks.
    """

    def __init__(self, reason: str, is_reporter: bool) -> None:
        super().__init__(f"{reason}; checkpoints are kept: start again, a training with --resume auto")
        self.is_reporter = is_reporter


class AgreedError(InputError):
    """An InputError that every rank raises with the same text, so rank 0 prints it for all."""


class NotFiniteError(AgreedError, FloatingPointError):
    """A loss, a gradient or a row is NaN or infinite; all ranks raise it, because they check the same values."""


class OutOfMemoryError(InputError):
    """This rank ran out of memory. The other ranks do not know, so this rank prints the error itself."""
