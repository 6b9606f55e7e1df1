"""cm3_dist: distributed training of the CM3 multimodal recommender.

From a notebook: `from cm3_dist import prepare, train, load_run` (docs/python.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3_dist.api import Run, load_run, prepare, train

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load_run", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """Imports the interface, and torch with it, when it is asked for: commands and --help do not wait for them."""
    if name not in ("Run", "load_run", "prepare", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cm3_dist import api

    return getattr(api, name)
