"""What engines and Arrow raise when a disk is full or memory ends, as errors that a command prints in one line."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partition.errors import InputError, ResourceError, one_line
from partition.files import DISK_ERRORS, naming

_DISK = {os.strerror(number): number for number in DISK_ERRORS}
# DuckDB quotes the message of another thread, with its own quotes escaped.
_FILE = re.compile(r'file \\?"(.+?)\\?"')


@contextmanager
def shortage(folder: Path) -> Iterator[None]:
    """Turns errors of DuckDB, Spark and Arrow in the block that come of a full disk or of too little memory.

    Args:
        folder: where they write; errors that name no file name it.

    Raises:
        OSError: a file cannot be written; it names the file. `Work` keeps what is finished.
        ResourceError: `engine.memory`, the tables need more memory.
        InputError: `engine.failed`, DuckDB refuses what it reads.
    """
    with naming(folder, folder):
        try:
            yield
        except Exception as error:
            if (meant := _meant(error, folder)) is None:
                raise
            raise meant from None


def _meant(error: Exception, folder: Path) -> Exception | None:
    """The error to raise instead; None to leave this one."""
    text = one_line(error)
    if not isinstance(error, OSError):
        if reason := next((reason for reason in _DISK if reason in text), None):
            file = _FILE.search(text)
            return OSError(_DISK[reason], reason, file[1] if file else str(folder))
        if "max_temp_directory_size" in text:  # by default, what is free on the disk
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryException":
        message = f"{folder}: the tables need more memory; give more with --memory, or use fewer --threads"
        return ResourceError(f"{message}: {text[:120]}", "engine.memory")
    if type(error).__module__ in ("duckdb", "_duckdb"):  # such as text in a Parquet file that is not UTF-8
        return InputError(f"{folder}: DuckDB cannot read the tables: {text[:300]}", "engine.failed")
    return None
