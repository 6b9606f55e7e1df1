"""Whether a checkpoint belongs to the data and the settings it is loaded with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from cm3_dist.config.loading import REMOVED, drop_removed
from cm3_dist.config.settings import Settings
from cm3_dist.errors import InputError
from partition.folder.manifest import Manifest

# Settings that a run keeps for life; the others (how long, where, how often) may change.
FIXED = ("model", "propagation", "negatives", "loss", "tables", "dense")


def check_same_run(path: Path, record: dict[str, Any], manifest: Manifest, settings: Settings) -> None:
    """Compares what a checkpoint records with the present data and settings.

    Args:
        path: of the checkpoint, for messages.
        record: what was saved with it: `parts`, `data` (the manifest's digest) and `settings`.
        manifest: of the prepared folder.
        settings: as they are now.

    Raises:
        InputError: the data, the number of parts or a setting that affects training has changed.
    """
    if record["parts"] != manifest.num_parts:
        raise InputError(
            f"{path}: saved with {record['parts']} parts, the data has {manifest.num_parts}; prepare it again",
            "resume.data",
        )
    if record["data"] != manifest.digest():
        raise InputError(f"{path}: saved on other data than {settings.data.path}", "resume.data")
    saved, now, defaults = copy.deepcopy(record["settings"]), settings.plain(), Settings().plain()
    drop_removed(saved, dict.fromkeys(REMOVED, str(path)))
    for section in FIXED:
        before, after = saved[section], now[section]
        if isinstance(after, dict):  # the defaults of settings newer than the checkpoint change nothing
            before = defaults[section] | before
        if before == after:
            continue
        if isinstance(after, dict):
            key = next(name for name in after if before.get(name) != after[name])
            section, before, after = f"{section}.{key}", before.get(key), after[key]
        hint = "resume with the same, or start a new run.dir"
        raise InputError(f"{path}: saved with {section}={before}, resumed with {after}; {hint}", "resume.setting")
    for key in ("batch_size", "seed"):
        if saved["train"][key] != now["train"][key]:
            raise InputError(
                f"{path}: saved with train.{key}={saved['train'][key]}, resumed with {now['train'][key]}",
                "resume.setting",
            )
