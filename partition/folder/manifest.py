"""The manifest of a prepared folder: what the folder holds and how it was made; written with the digests of all files.

`SHA256SUMS` vouches for the manifest, and the manifest holds the size and digest of every other file, so that no change
of any file goes unnoticed. Folders of earlier versions are read, too: version 3 has neither weights nor masks, and text
ids in 32-bit `string` instead of `large_string`; in version 2 the manifest has a checksum
of itself as its first field instead; in version 1 it has no checksum, no sizes and no digests of the shared files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from partition.errors import InputError, one_line, require
from partition.folder import layout
from partition.options import RecordedSplit

SCHEMA_VERSION = 4
_READABLE = (1, 2, 3, 4)
_CHECKSUM = re.compile(rb'"checksum": "([0-9a-f]{64})"')
_CHANGED = "changed since it was written (sha256); copy the folder again, or prepare the data again"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Modality(_Model):
    """The features of one modality: `dim` columns of `dtype`, reduced by PCA if `source_dim` is larger."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    dim: int = Field(gt=0)
    dtype: Literal["float16", "float32", "float64"]
    source_dim: int = Field(gt=0)
    masked: bool = False  # there is a `missing-NAME.npy` per part; fusion leaves these items' rows out


class Part(_Model):
    """The sizes of one part: `active_*` have a training interaction, `halo_*` are rows of other parts in its edges."""

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
    """The content of `manifest.json`."""

    checksum: str = Field(default="", exclude=True)  # schema version 2: of the manifest itself
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
    split: RecordedSplit
    user_id_type: Literal["int64", "string"]
    item_id_type: Literal["int64", "string"]
    weighted: bool = False  # graph.npz has the weight of every edge
    counts: dict[str, int]  # what preparation dropped or merged, by reason
    settings: dict[str, Any]  # the whole command, to repeat it
    inputs: dict[str, str]  # input file name -> sha256
    digests: dict[str, str] = {}  # file that belongs to no part -> sha256
    statistics: dict[str, float]  # edge cut, random edge cut, padding, item-graph recall ...
    versions: dict[str, str]

    @property
    def num_parts(self) -> int:
        """P, the number of parts."""
        return len(self.parts)

    @property
    def part_files(self) -> list[str]:
        """The names of the files that every part has, sorted."""
        masked = [modality.name for modality in self.modalities if modality.masked]
        return layout.part_files([modality.name for modality in self.modalities], masked)

    def digest(self) -> str:
        """Returns one sha256 over the digests of all parts' files: equal for equal data."""
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


def cut_statistics(parts: Sequence[Part]) -> dict[str, float]:
    """Returns the statistics of the cut that follow from the parts' sizes.

    `edge_cut`: the share of training interactions whose ends are in two parts; `edge_cut_random`: the share expected of
    random parts; `user_padding` and `item_padding`: rows without a node, per node.
    """
    count = len(parts)
    figures = {
        "edge_cut": 1 - sum(part.inner_edges for part in parts) / sum(part.train for part in parts),
        "edge_cut_random": 1 - 1 / count,
    }
    for name, sizes in (("user", [part.users for part in parts]), ("item", [part.items for part in parts])):
        figures[f"{name}_padding"] = count * max(sizes) / sum(sizes) - 1
    return figures


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Writes `root`/manifest.json and `root`/SHA256SUMS."""
    data = (json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n").encode()
    (root / layout.MANIFEST).write_bytes(data)
    (root / layout.SUMS).write_text(expected_sums(data, manifest), encoding="utf-8")


def read_manifest(root: Path) -> Manifest:
    """Reads `root`/manifest.json and compares it with its digest.

    Raises:
        InputError: `prepared.missing`, there is no manifest; `manifest.unreadable`, it or SHA256SUMS cannot be read;
            `manifest.version`, its schema version is unknown; `manifest.changed`, it was changed since it was written;
            `manifest.field`, a field is missing or wrong.
    """
    path = root / layout.MANIFEST
    try:
        data = path.read_bytes()
        raw = json.loads(data.decode())
    except FileNotFoundError:
        hint = f"make one with: python -m partition build --input DATA --parts 4 --output {root}"
        message = f"{path}: no such file, so this is not a prepared folder; {hint}"
        raise InputError(message, "prepared.missing") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not JSON
        raise InputError(f"{path}: cannot be read as JSON: {one_line(error)}", "manifest.unreadable") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version not in _READABLE:
        message = f"{path}: schema_version is {version!r}; this program reads {', '.join(map(str, _READABLE))}"
        raise InputError(f"{message}; prepare the data again", "manifest.version")
    sums = _read_sums(root / layout.SUMS) if version >= 3 else ""
    if version >= 3:
        require(sums.startswith(_line(data, layout.MANIFEST)), path, _CHANGED, "manifest.changed")
    elif version == 2 or "checksum" in raw:
        require(_checksum_is_right(data), path, _CHANGED, "manifest.changed")
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{path}: field {where!r}: {first['msg']}; prepare the data again"
        raise InputError(message, "manifest.field") from None
    if version >= 3:
        require(sums == expected_sums(data, manifest), root / layout.SUMS, _CHANGED, "manifest.changed")
    return manifest


def expected_sums(data: bytes, manifest: Manifest) -> str:
    """Returns the content of SHA256SUMS for a manifest whose file holds `data`."""
    files = dict(manifest.digests)
    for number, part in enumerate(manifest.parts):
        folder = layout.part_dir(Path(), number)
        files |= {str(folder / name): digest for name, digest in part.digests.items()}
    return _line(data, layout.MANIFEST) + "".join(f"{digest}  {name}\n" for name, digest in files.items())


def _line(data: bytes, name: str) -> str:
    return f"{hashlib.sha256(data).hexdigest()}  {name}\n"


def _read_sums(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = f"{path}: no such file; copy the folder again, or prepare the data again"
        raise InputError(message, "manifest.unreadable") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {one_line(error)}", "manifest.unreadable") from None


def _checksum_is_right(data: bytes) -> bool:
    """Whether the checksum of a manifest of version 2 is the sha256 of its bytes with zeros in the checksum's place."""
    found = _CHECKSUM.search(data)
    if found is None:
        return False
    blank = data[: found.start(1)] + b"0" * 64 + data[found.end(1) :]
    return hashlib.sha256(blank).hexdigest().encode() == found[1]
