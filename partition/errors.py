"""The one exception that means "the user can mend this": printed as a single line, exit code 2."""

from __future__ import annotations

import tokenize
from pathlib import Path


class InputError(Exception):
    """Bad input, settings or environment.

    The message is one line that names the file, row, key or command at fault and, where there is one, the remedy.
    Entry points print it to stderr as it is and exit with code 2.
    """


def require(right: bool, path: Path, message: str) -> None:
    """Refuses a file that is not `right`."""
    if not right:
        raise InputError(f"{path}: {message}")


# What np.load raises for a file that is torn: NumPy parses the header of an array as a Python literal.
TORN_ARRAY = (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, tokenize.TokenError)
