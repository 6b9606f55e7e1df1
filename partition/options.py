"""What a preparation is asked for: the options of `python -m partition build`, and how those that are text are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from partition.cut.assign import Method
from partition.errors import InputError
from partition.item_graph.graph import default_weights


class BuildOptions(BaseModel):
    """The command line of `python -m partition build`; docs/data.md says what each option does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: list[Path] = Field(min_length=1)
    output: Path
    parts: int = Field(gt=0)
    name: str | None = None
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    split_column: str | None = None
    split: Literal["auto", "column", "random", "leave-last-out", "cold-items"] = "auto"
    seed: int = Field(default=2025, ge=0)
    kcore: int = Field(default=0, ge=0)
    features: list[str] = []  # NAME, or NAME=FILE[:column]
    pca: list[str] = []  # DIM, or NAME=DIM
    spectral: int = Field(default=0, ge=0)
    item_graph_k: int = Field(default=10, gt=0)
    item_graph_weight: list[str] = []  # NAME=W
    cooccurrence_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    noise: float = Field(default=0.0, ge=0, le=1)
    approximate_above: int = Field(default=200_000, ge=0)
    method: Method = "auto"
    overwrite: bool = False


def item_graph_weights(texts: Sequence[str], modalities: Sequence[str]) -> dict[str, float]:
    """Reads `NAME=W` for every modality; without any, the defaults of the item graph.

    Raises:
        InputError: an unknown or missing modality, a weight that is not a number of at least 0, or no weight above 0.
    """
    if not texts:
        return default_weights(modalities)
    weights = {}
    for text in texts:
        name, weight = _named_number(text, "--item-graph-weight", modalities)
        if name is None or not 0 <= weight < np.inf:
            raise InputError(f"--item-graph-weight {text}: expected NAME=W with W >= 0")
        weights[name] = weight
    missing = [name for name in modalities if name not in weights]
    if missing:
        raise InputError(f"--item-graph-weight: give one for every modality; {missing[0]!r} is missing")
    if not any(weights.values()):
        raise InputError("--item-graph-weight: at least one weight must be above 0")
    return weights


def pca_dims(texts: Sequence[str], modalities: Sequence[str]) -> dict[str, int]:
    """Reads `DIM`, for all modalities that are wider (under the name "*"), and `NAME=DIM`, for one.

    Raises:
        InputError: an unknown modality, or a number of dimensions that is not whole and positive.
    """
    dims: dict[str, int] = {}
    for text in texts:
        name, dim = _named_number(text, "--pca", modalities)
        if dim < 1 or dim != int(dim):
            raise InputError(f"--pca {text}: expected DIM or NAME=DIM, a whole number of at least 1")
        dims["*" if name is None else name] = int(dim)
    return dims


def _named_number(text: str, option: str, modalities: Sequence[str]) -> tuple[str | None, float]:
    name, equals, number = text.rpartition("=")
    if equals and name not in modalities:
        raise InputError(f"{option} {text}: no modality {name!r}; there are {', '.join(modalities)}")
    try:
        return name if equals else None, float(number)
    except ValueError:
        raise InputError(f"{option} {text}: {number!r} is not a number") from None
