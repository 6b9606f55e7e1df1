"""The one exception that means "the user can mend this": printed as a single line, exit code 2."""

from __future__ import annotations

import tokenize
from pathlib import Path


class InputError(Exception):
    """Bad input, settings or environment.

    The message is one line that names the file, row, key or command at fault and, where there is one, the remedy.
    Entry points print `error[CODE]: MESSAGE` to stderr and exit with 2.

    Args:
        message: the line.
        code: what kind of error it is, for scripts and tests: a dotted name such as `features.missing`.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code

    @property
    def line(self) -> str:
        """What an entry point prints: `error[CODE]: MESSAGE`, or without a code `error: MESSAGE`."""
        return f"error[{self.code}]: {self}" if self.code else f"error: {self}"


def require(right: bool, path: Path, message: str, code: str = "") -> None:
    """Refuses a file that is not `right`."""
    if not right:
        raise InputError(f"{path}: {message}", code)


# What np.load raises for a file that is torn: NumPy parses the header of an array as a Python literal.
TORN_ARRAY = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, tokenize.TokenError)
