"""What a prepared folder looks like: the manifest's schema, the file names, and the row space.

Written by `write`, read by `verify` and by the trainer. Everything a rank needs to train is in the
folders of its own parts; the manifest alone tells where any row lives::

    PREPARED/
      manifest.json
      pca-NAME.npy           [source_dim, dim] float64 basis of a modality that PCA reduced, to reduce new items with
      parts/part-00000/
        users.arrow        id, train_degree: one record a user, in offset order
        items.arrow        id, train_degree: one record an item, in offset order
        graph.npz          in-edges of this part's users and items (training split), with the halo at their other end
        item_graph.npz     indptr, neighbour (item rows), weight: in-edges of this part's items in the item-item graph
        validation.arrow   user (row), item (row), sorted by both
        test.arrow         likewise
        features-NAME.npy  one row an item, in offset order, in the precision it came in

**Row space.** A node's row is ``part * stride + offset``, per node type; the stride is the size of the largest part.
Inside a part the nodes with a training interaction come first, so ``offset < active`` says whether a row was trained
without looking anything up. Rows between a part's size and the stride are padding and belong to no node.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from partition.errors import InputError
from partition.folder import seal

SCHEMA_VERSION = 2
READABLE = (
    1,
    2,
)  # 1 (version 0.1.0) has no checksum, no sizes of files, and no digests of those that belong to no part
MANIFEST = "manifest.json"
USERS, ITEMS, GRAPH, ITEM_GRAPH = "users.arrow", "items.arrow", "graph.npz", "item_graph.npz"
HELD_OUT = {"validation": "validation.arrow", "test": "test.arrow"}
# Edge types of graph.npz, as DGL names them; a message runs from the first node type to the last.
USER_TO_ITEM = ("user", "rates", "item")
ITEM_TO_USER = ("item", "rated_by", "user")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Modality(_Model):
    """One modality's feature matrix; `dim` columns of `dtype`, reduced from `source_dim` when PCA was asked for."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    dim: int = Field(gt=0)
    dtype: Literal["float16", "float32", "float64"]
    source_dim: int = Field(gt=0)


class Part(_Model):
    """Sizes of one part. `active_*` have a training interaction; `halo_*` are rows of other parts its edges need."""

    users: int
    active_users: int
    items: int
    active_items: int
    train: int  # training interactions of this part's users
    validation: int
    test: int
    inner_edges: int  # training interactions with both ends in this part
    halo_users: int
    halo_items: int
    digests: dict[str, str]  # file name -> sha256
    bytes: dict[str, int] = {}  # file name -> size


class Manifest(_Model):
    """`manifest.json`: what the folder holds and how it came about."""

    checksum: str = ""  # of the manifest itself (partition.folder.seal)
    schema_version: int
    name: str
    users: int
    items: int
    train: int
    validation: int
    test: int
    user_stride: int
    item_stride: int
    parts: list[Part]
    modalities: list[Modality]
    split: Literal["column", "random", "leave_last_out", "cold_items"]
    user_id_type: Literal["int64", "string"]
    item_id_type: Literal["int64", "string"]
    counts: dict[str, int]  # what preparation dropped or merged, by reason
    settings: dict[str, Any]  # the whole command, to repeat it
    inputs: dict[str, str]  # input file name -> sha256
    digests: dict[str, str] = {}  # file of no part -> sha256
    statistics: dict[str, float]  # edge cut, random edge cut, padding, item-graph recall ...
    versions: dict[str, str]

    @property
    def num_parts(self) -> int:
        """P, the number of parts."""
        return len(self.parts)

    def digest(self) -> str:
        """One sha256 over the digests of all parts' files: equal for equal data."""
        text = json.dumps([part.digests for part in self.parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def user_rows(self) -> int:
        """Rows of the user row space, padding included: P * user_stride."""
        return self.num_parts * self.user_stride

    @property
    def item_rows(self) -> int:
        """Rows of the item row space, padding included: P * item_stride."""
        return self.num_parts * self.item_stride


def cut(parts: Sequence[Part]) -> dict[str, float]:
    """What the cut costs: the statistics that follow from the parts' sizes.

    `edge_cut`: the share of training interactions with their ends in two parts, and the same expected of random parts;
    `*_padding`: rows without a node, per node.
    """
    count = len(parts)
    figures = {
        "edge_cut": 1 - sum(part.inner_edges for part in parts) / sum(part.train for part in parts),
        "edge_cut_random": 1 - 1 / count,
    }
    for name, sizes in (("user", [part.users for part in parts]), ("item", [part.items for part in parts])):
        figures[f"{name}_padding"] = count * max(sizes) / sum(sizes) - 1
    return figures


def part_dir(root: Path, part: int) -> Path:
    """Folder of one part."""
    return root / "parts" / f"part-{part:05d}"


def features_file(modality: str) -> str:
    """File name of a modality's features inside a part."""
    return f"features-{modality}.npy"


def basis_file(modality: str) -> str:
    """File name, in the prepared folder itself, of the basis that a modality was reduced with."""
    return f"pca-{modality}.npy"


def read_manifest(root: Path) -> Manifest:
    """Reads and checks `root`/manifest.json.

    Raises:
        InputError: the folder or file is missing, is not JSON, has an unknown schema version, was changed since it was
            written, or lacks or misstates a field; the message names the file and the field.
    """
    path = root / MANIFEST
    try:
        data = path.read_bytes()
        raw = json.loads(data.decode())
    except FileNotFoundError:
        hint = "make one with: python -m partition build --input DATA --parts 4 --output " + str(root)
        raise InputError(f"{path}: no such file, so this is not a prepared folder; {hint}") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not JSON
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise InputError(f"{path}: schema_version is {version!r}, this program reads {readable}; prepare it again")
    if (version > 1 or seal.FIELD in raw) and not seal.is_whole(data):
        raise InputError(
            f"{path}: changed since it was written (checksum); copy the folder once more, or prepare the data again"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: field {where!r}: {first['msg']}; prepare the data again") from None
