"""Why an item could not be used, in one line that is the same in every run."""

from __future__ import annotations

import re

from partition.errors import InputError, one_line

_LONGEST = 300  # characters


def reason_of(error: BaseException) -> str:
    """The message of an exception, with its type where the message alone says little.

    Addresses of objects are left out: they differ from run to run.
    """
    text = one_line(error)
    if type(error) not in (OSError, ValueError, RuntimeError) and text != type(error).__name__:
        text = f"{type(error).__name__}: {text}"
    return printable(re.sub(r" at 0x[0-9a-f]+", "", text))


def printable(text: str) -> str:
    """Text that UTF-8 can hold, cut to a line: names of files may have bytes that are no characters."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def one_bad_item(error: BaseException) -> bool:
    """Whether an exception may be the fault of one item: not an InputError, and not when somebody stops the program."""
    if isinstance(error, Exception):
        return not isinstance(error, InputError)
    return type(error).__name__ == "PanicException"  # of code in Rust (tokenizers), and no Exception
