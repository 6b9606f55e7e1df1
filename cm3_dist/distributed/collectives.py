"""Small agreements between ranks: errors that all ranks raise together, and actions of rank 0 that all wait for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from cm3_dist.distributed.runtime import Runtime
from cm3_dist.errors import AgreedError, InputError


def agree_on_error(runtime: Runtime, action: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """Runs `action` on every rank and returns its result. Collective.

    Otherwise, if it failed on one rank, the others would wait for that rank in their next collective.

    Args:
        runtime: this rank.
        action: must not contain collectives unless it fails on all ranks alike.
        group: `runtime.control` by default, which belongs to the main thread.

    Raises:
        AgreedError: `action` raised InputError on some rank; every rank raises the error of the first such rank.
    """
    error: tuple[str, str] | None = None
    result = None
    try:
        result = action()
    except InputError as caught:
        error = str(caught), caught.code
    errors: list[tuple[str, str] | None] = [None] * runtime.world_size
    dist.all_gather_object(errors, error, group=group or runtime.control)
    first = next((each for each in errors if each is not None), None)
    if first is not None:
        raise AgreedError(*first)
    return result


def on_rank_0(runtime: Runtime, action: Callable[[], object]) -> None:
    """Runs `action` on rank 0 while the others wait. Collective.

    Raises:
        AgreedError: `action` raised InputError, or OSError because something cannot be written.
    """
    everywhere(runtime, action if runtime.rank == 0 else _nothing)


def everywhere(runtime: Runtime, action: Callable[[], object], path: Path | str = "output") -> None:
    """Runs `action` on every rank, to write the rank's own files, and waits for all. Collective.

    `path` is named where an OSError names no file, as Arrow's do.

    Raises:
        AgreedError: `action` raised InputError, or OSError because something cannot be written, on some rank.
    """

    def act() -> None:
        try:
            action()
        except OSError as error:
            message = f"{error.filename or path}: cannot be written: {error.strerror or error}"
            raise InputError(message, "output.unwritable") from error

    agree_on_error(runtime, act)
    dist.barrier(group=runtime.control)


def _nothing() -> None:
    pass
