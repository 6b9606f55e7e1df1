"""cm3_dist: distributed training of the CM3 multimodal recommender.

From a notebook or script: `from cm3_dist import prepare, fit, load_run` (docs/python.md).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3_dist.api import Run, fit, load_run, prepare

    __version__: str

__all__ = ["Run", "__version__", "fit", "load_run", "prepare"]


def __getattr__(name: str) -> Any:
    """Imports `cm3_dist.api`, and torch with it, on first use, so that commands and --help do not wait for them."""
    if name == "__version__":
        return version("cm3-dist")  # not on import: the doctor has to run where the package is not installed
    if name not in ("Run", "fit", "load_run", "prepare"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cm3_dist import api

    return getattr(api, name)
