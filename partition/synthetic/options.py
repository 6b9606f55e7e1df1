"""The options of `python -m partition synthetic`, typed once: the command line is made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from partition.errors import InputError
from partition.options import SEED, Options, option


@dataclass(frozen=True)
class Width:
    """Columns and dtype of a generated modality."""

    dim: int
    dtype: str = "float32"


def parse_modalities(text: str) -> dict[str, Width]:
    """Parses `NAME:DIM[:float16|float32],...`.

    Raises:
        InputError: anything else, or a name twice.
    """
    modalities: dict[str, Width] = {}
    for entry in text.split(","):
        match = re.fullmatch(r"([A-Za-z0-9_-]+):([1-9][0-9]*)(?::(float16|float32))?", entry.strip())
        if match is None or match[1] in modalities:
            message = f"--modalities {text}: {entry.strip()!r}: expected NAME:DIM[:float16], each name once"
            raise InputError(message, "synthetic.modalities")
        modalities[match[1]] = Width(int(match[2]), match[3] or "float32")
    return modalities


def _parsed(value: Any) -> Any:
    return parse_modalities(value) if isinstance(value, str) else value


class SyntheticOptions(Options):
    """Options of `python -m partition synthetic`: tastes are planted, or with `expand` a data set is grown.

    Raises:
        InputError: `expand` without the sizes to grow to, or with clusters.
    """

    output: Path = option(help="Folder to write, which build reads.", metavar="DIR")
    expand: Path | None = option(
        None, "Grow this data set, keeping its structure, instead of planting tastes.", metavar="DIR_OR_FILE"
    )
    users: int = option(3_000, "Number of users; required with --expand.", ge=1)
    items: int = option(1_500, "Number of items; required with --expand.", ge=2)
    interactions: int = option(45_000, "Number of interactions; required with --expand.", ge=1)
    clusters: int = option(30, "Number of tastes; each user has one to three.", ge=1)
    modalities: Annotated[dict[str, Width] | None, BeforeValidator(_parsed)] = option(
        None,
        "Features to generate (default: image:64,text:32); with --expand those to keep, reduced by PCA (default: all).",
        metavar="NAME:DIM[:float16],...",
        as_text=True,
    )
    seed: int = option(SEED, "Seed of every random choice.", ge=0)
    overwrite: bool = option(False, "Replace the files of an earlier run.")

    @model_validator(mode="after")
    def _check(self) -> SyntheticOptions:
        if self.expand is not None:
            if not {"users", "items", "interactions"} <= self.model_fields_set:
                message = "--expand: give --users, --items and --interactions, the sizes to grow to"
                raise InputError(message, "synthetic.sizes")
            if "clusters" in self.model_fields_set:
                raise InputError("--clusters: tastes are planted only without --expand", "synthetic.clusters")
        return self

    @property
    def planted(self) -> dict[str, Width]:
        """Modalities to generate where tastes are planted."""
        return self.modalities or {"image": Width(64), "text": Width(32)}

    @property
    def kept(self) -> dict[str, Width]:
        """Modalities to keep of the data set that is grown, with their widths; empty for all as they are."""
        return self.modalities or {}
