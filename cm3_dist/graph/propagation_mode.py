"""Whether a graph is propagated exactly or by sampled neighbours."""

from __future__ import annotations

from typing import Literal

from cm3_dist.config.settings import Settings
from partition.folder.manifest import Manifest


def resolve_mode(settings: Settings, manifest: Manifest) -> Literal["exact", "sampled"]:
    """The mode that `propagation.mode` names; `auto` is exact up to `propagation.auto_rows` users and items."""
    mode = settings.propagation.mode
    if mode != "auto":
        return mode
    return "exact" if manifest.users + manifest.items <= settings.propagation.auto_rows else "sampled"
