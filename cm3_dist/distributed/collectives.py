"""Small agreements between ranks: errors that all raise together, and actions of rank 0 that all wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from cm3_dist.distributed.runtime import Runtime
from cm3_dist.errors import InputError


def agree_on_error(runtime: Runtime, action: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """Runs `action` on every rank; when it fails on one with InputError, every rank raises that same error.

    Otherwise the ranks whose own files are whole would wait for the one that stopped. `group` is `control` by default,
    which belongs to the main thread.
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
        raise InputError(*first)
    return result


def on_rank_0(runtime: Runtime, action: Callable[[], object]) -> None:
    """Lets rank 0 act; all ranks wait for it, and fail when it fails."""
    everywhere(runtime, action if runtime.rank == 0 else lambda: None)


def everywhere(runtime: Runtime, action: Callable[[], object]) -> None:
    """Lets every rank write its own files; when one cannot, all raise the same InputError."""

    def act() -> None:
        try:
            action()
        except OSError as error:
            raise InputError(f"{error.filename or 'output'}: cannot be written: {error.strerror or error}") from error

    agree_on_error(runtime, act)
    dist.barrier(group=runtime.control)
