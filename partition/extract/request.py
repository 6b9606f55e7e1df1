"""The options of `python -m partition extract`, typed once: the command line is made from them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from partition.errors import InputError
from partition.options import SEED, Choice, Options, option

BLOCK = 512  # items whose rows are saved together: the most that an interruption costs
MODEL, OUTPUT = "Encoder", "Output"


class Pooling(Choice):
    """How the last hidden states of an item become one row."""

    AUTO = "auto"
    MEAN = "mean"
    FIRST = "first"
    LAST = "last"


class Device(Choice):
    """Where a model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(Choice):
    """Precision of the rows."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class Fill(Choice):
    """Row of an item that has none of its own."""

    ZEROS = "zeros"
    MEAN = "mean"


def _columns(value: Any) -> Any:
    return [column.strip() for column in value.split(",")] if isinstance(value, str) else value


class Request(Options):
    """Options of `python -m partition extract`; docs/data.md explains them."""

    items: Path = option(help="Table with an item column, one item per row.", metavar="FILE")
    output: Path = option(
        help="File to write, rows in the order of the table; .parquet includes the ids.", metavar="FILE.parquet|.npy"
    )
    text: Annotated[list[str], BeforeValidator(_columns)] = option(
        [], "Columns of text (or lists of text), joined in this order.", metavar="COLUMN,...", as_text=True
    )
    images: str | None = option(
        None, "Column of paths or image bytes, or a folder with ID.jpg, ID.png, ...", metavar="COLUMN|FOLDER"
    )
    item_column: str | None = option(None, "Its name, if not item, item_id, itemID, asin or iid.")
    model: str | None = option(
        None,
        "sentence-transformers or transformers model: of text, of images, CLIP or SigLIP, multimodal LM.",
        panel=MODEL,
        metavar="FOLDER|NAME",
    )
    tfidf: str | None = option(
        None,
        "Texts without a model: TF-IDF reduced to DIM by SVD, or as in FILE.tfidf.npz of an earlier run.",
        panel=MODEL,
        metavar="DIM|FILE",
    )
    revision: str | None = option(None, "Commit or branch on the hub.", panel=MODEL)
    pooling: Pooling = option(
        Pooling.AUTO, "Pooling of the last hidden states. auto: last for decoders, mean for all others.", panel=MODEL
    )
    max_tokens: int | None = option(None, "Texts are cut here; by default at 512 or fewer.", panel=MODEL, ge=1)
    batch_size: int = option(32, "Items encoded at a time.", panel=MODEL, ge=1)
    device: Device = option(Device.AUTO, "auto: a GPU if there is one.", panel=MODEL)
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.", panel=MODEL)
    seed: int = option(SEED, "Seed of the SVD.", panel=MODEL, ge=0)
    name: str | None = option(None, "Name of the modality; by default text, image or multimodal.", panel=OUTPUT)
    dtype: Dtype = option(Dtype.FLOAT32, "Precision of the rows.", panel=OUTPUT)
    fill: Fill = option(
        Fill.ZEROS, "Row of an item that cannot be encoded; it is also marked as missing.", panel=OUTPUT
    )
    overwrite: bool = option(False, "Replace the output.", panel=OUTPUT)

    @property
    def modality(self) -> str:
        """Name of the feature column."""
        default = "image" if self.images and not self.text else "multimodal" if self.images else "text"
        return self.name or default

    @property
    def beside(self) -> Path:
        """The JSON file that describes the rows."""
        return self.output.with_name(f"{self.output.name}.json")

    @property
    def characters(self) -> int:
        """Longest text that a model gets: far more than its tokens need, but no gigabytes for one item."""
        return max(100_000, 50 * (self.max_tokens or 0))

    @property
    def source(self) -> dict[str, Any]:
        """Arguments of transformers for loading the model from the hub."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def check(self) -> None:
        """Raises InputError if options do not go together or the output exists."""
        if not self.text and self.images is None:
            raise InputError("give --text COLUMN,... or --images COLUMN_OR_FOLDER", "extract.source")
        if (self.model is None) == (self.tfidf is None):
            raise InputError("give --model NAME_OR_FOLDER, or --tfidf DIM for texts without a model", "extract.encoder")
        if self.tfidf is not None and self.images is not None:
            raise InputError("--tfidf: is for texts; --images needs --model", "extract.encoder")
        if self.output.suffix not in (".parquet", ".npy"):
            message = f"--output {self.output}: expected a name that ends with .parquet or .npy"
            raise InputError(message, "extract.output")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.modality):
            raise InputError(f"--name {self.modality}: use letters, digits, _ and -", "features.name")
        if self.output.exists() and not self.overwrite:
            raise InputError(f"{self.output}: exists already; add --overwrite to replace it", "output.exists")

    def decides(self) -> dict[str, Any]:
        """The options on which the rows depend, JSON; not the batch size, which may be reduced when memory runs out."""
        left_out = {"output", "overwrite", "batch_size", "device", "dtype", "fill", "name"}
        return {"extract": self.model_dump(mode="json", exclude=left_out), "block": BLOCK, "format": 2}
