"""The optional packages that only extraction needs."""

from __future__ import annotations

from partition.errors import InputError


def needs_extra(error: ImportError) -> InputError:
    """The error for a package of the extra that is not installed."""
    return InputError(
        f"{error.name} is not installed; `make extract`, or the package's extra of that name, adds what this command "
        "needs",
        "extract.packages",
    )
