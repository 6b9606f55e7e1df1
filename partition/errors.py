"""InputError, the exception for everything that the user can fix: printed as one line, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


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


class ResourceError(InputError):
    """The machine has too little memory or room on a disk: nothing is wrong with the input.

    A preparation keeps the stages that are finished, and the same command resumes when there is more.
    """


def require(right: bool, path: Path, message: str, code: str = "") -> None:
    """Refuses a file that is not `right`."""
    if not right:
        raise InputError(f"{path}: {message}", code)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns every failure to read `path` into an InputError; keep only calls that read the file in the block.

    NumPy, zipfile and Arrow parse what a file says about itself, so that a damaged byte makes them raise nearly
    anything: SyntaxError, KeyError, NotImplementedError, zlib.error, MemoryError ... All of them are taken.

    Args:
        path: the file.
        what: what it should be, for the message: "an Arrow file".

    Raises:
        InputError: `file.missing`, or `file.unreadable` for any other exception in the block.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", "file.missing") from None
    except Exception as error:
        raise InputError(f"{path}: cannot be read as {what}: {one_line(error)}", "file.unreadable") from None


def one_line(error: BaseException) -> str:
    """The message of an exception without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def exit_with_one_line(command: Callable[[], object]) -> NoReturn:
    """Runs a command of one process; an error that the user can correct becomes one line on stderr and exit code 2.

    Args:
        command: exits by itself when it succeeds, as a typer application does.
    """
    try:
        command()
    except InputError as error:
        print(error.line, file=sys.stderr)
    except OSError as error:
        if error.filename is None:
            raise
        print(InputError(f"{error.filename}: {error.strerror}", "file.unwritable").line, file=sys.stderr)
    sys.exit(2)
