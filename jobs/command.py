"""Entry point of this package's commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from partition.errors import exit_with_one_line


def command_line(main: Callable[..., Any]) -> None:
    """Runs `main` on the command line. InputError and unreadable files become one line on stderr and exit code 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    exit_with_one_line(app)
