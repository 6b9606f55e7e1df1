"""The output of a command that writes a prepared folder: what may be replaced, and the work folder beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from partition.errors import InputError
from partition.files import is_free
from partition.folder import layout
from partition.resume import Work, work_folder


@contextmanager
def preparing(output: Path, overwrite: bool, command: dict[str, Any], inputs: Sequence[str]) -> Iterator[Work]:
    """Yields the work folder of `output`, after checking that the output may be written.

    Args:
        output: the prepared folder to write.
        overwrite: whether to replace an earlier one.
        command: everything else that the results depend on, as JSON.
        inputs: places on whose files they depend.

    Raises:
        InputError: `output.not-prepared`, it is neither a prepared folder nor an empty one; `output.exists`, it is a
            prepared folder, which is not to be replaced; or as `work_folder`.
    """
    _check(output, overwrite)
    with work_folder(output, command, inputs) as work:
        _check(output, overwrite)  # again: resuming may have restored the folder
        yield work


def _check(output: Path, overwrite: bool) -> None:
    if is_free(output):
        return
    if not (output / layout.MANIFEST).is_file():
        message = f"{output}: exists and is not a prepared folder; choose another --output"
        raise InputError(message, "output.not-prepared")
    if not overwrite:
        raise InputError(f"{output}: exists already; add --overwrite to replace it", "output.exists")
