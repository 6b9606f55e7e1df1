"""Entry point of this package's commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from partition.errors import InputError


def command_line(main: Callable[..., Any]) -> None:
    """Runs `main` on the command line. InputError and unreadable files become one line on stderr and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except InputError as error:
        print(error.line, file=sys.stderr)
    except OSError as error:
        if error.filename is None:
            raise
        print(InputError(f"{error.filename}: {error.strerror}", "file.unwritable").line, file=sys.stderr)
    sys.exit(2)
