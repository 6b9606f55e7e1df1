"""What `python -m partition extract` is asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from partition.errors import InputError

BLOCK = 512  # items whose rows are saved together: what an interruption costs at most
Pooling = Literal["auto", "mean", "first", "last"]


class Request(BaseModel):
    """The command line; docs/data.md says what each option does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: Path
    output: Path
    item_column: str | None = None
    text: list[str] = []  # columns, joined in this order
    images: str | None = None  # a column of the items table, or a folder
    model: str | None = None  # folder or name on the hub
    tfidf: str | None = None  # dimensions, or a file of an earlier call
    name: str | None = None
    revision: str | None = None
    pooling: Pooling = "auto"
    max_tokens: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=32, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "float16"] = "float32"
    fill: Literal["zeros", "mean"] = "zeros"
    trust_remote_code: bool = False
    seed: int = Field(default=2025, ge=0)
    overwrite: bool = False

    @property
    def modality(self) -> str:
        """Name of the feature column."""
        default = "image" if self.images and not self.text else "multimodal" if self.images else "text"
        return self.name or default

    @property
    def beside(self) -> Path:
        """The JSON file that says what the rows are."""
        return self.output.with_name(f"{self.output.name}.json")

    @property
    def source(self) -> dict[str, Any]:
        """How transformers is to take the model from the hub."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def check(self) -> None:
        """Raises InputError where options do not go together."""
        if not self.text and self.images is None:
            raise InputError("give --text COLUMN,... or --images COLUMN_OR_FOLDER")
        if (self.model is None) == (self.tfidf is None):
            raise InputError("give --model NAME_OR_FOLDER, or --tfidf DIM for texts without a model")
        if self.tfidf is not None and self.images is not None:
            raise InputError("--tfidf: is for texts; --images needs --model")
        if self.output.suffix not in (".parquet", ".npy"):
            raise InputError(f"--output {self.output}: expected a name that ends with .parquet or .npy")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.modality):
            raise InputError(f"--name {self.modality}: use letters, digits, _ and -")
        if self.output.exists() and not self.overwrite:
            raise InputError(f"{self.output}: exists already; add --overwrite to replace it")

    def decides(self) -> dict[str, Any]:
        """The options that the rows depend on, JSON; not the batch size, which may be lowered when memory ran out."""
        left_out = {"output", "overwrite", "batch_size", "device", "dtype", "fill", "name"}
        return {"extract": self.model_dump(mode="json", exclude=left_out), "block": BLOCK}
