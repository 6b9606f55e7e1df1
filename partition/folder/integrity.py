"""Whether the files of a prepared folder are those that preparation wrote, for whoever is about to read them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from partition.errors import InputError, require
from partition.files import sha256
from partition.folder import layout

Level = Literal["full", "sizes", "none"]
_AGAIN = "; copy the folder once more, or prepare the data again"


def part_names(manifest: layout.Manifest) -> list[str]:
    """The files of every part."""
    names = [layout.USERS, layout.ITEMS, layout.GRAPH, layout.ITEM_GRAPH, *layout.HELD_OUT.values()]
    return sorted([*names, *(layout.features_file(modality.name) for modality in manifest.modalities)])


def check_manifest(root: Path, manifest: layout.Manifest) -> None:
    """Whether the manifest agrees with itself, so that what is read by it fits together.

    Raises:
        InputError: it does not; names the field.
    """
    path = root / layout.MANIFEST
    require(bool(manifest.parts), path, "parts: there is none")
    require(bool(manifest.modalities), path, "modalities: there is none")
    bases = {layout.basis_file(modality.name) for modality in manifest.modalities}
    for name in manifest.digests:
        require(name in bases, path, f"digests: {name!r} is no file of a prepared folder")
    files, names = part_names(manifest), [modality.name for modality in manifest.modalities]
    require(len(set(names)) == len(names), path, f"modalities: a name occurs twice in {', '.join(names)}")
    for modality in manifest.modalities:
        name, dim = f"modalities.{modality.name}", modality.dim
        require(modality.source_dim >= dim, path, f"{name}.source_dim: {modality.source_dim} is below its dim, {dim}")
    for number, part in enumerate(manifest.parts):
        sizes = part.model_dump(exclude={"digests", "bytes"})
        for name, size in sizes.items():
            require(size >= 0, path, f"parts.{number}.{name}: {size} is negative")
        require(set(part.digests) == set(files), path, f"parts.{number}.digests: expected {', '.join(files)}")
        require(part.users > 0 and part.items > 0, path, f"parts.{number}: has no user or no item")
        for small, large in (("active_users", "users"), ("active_items", "items"), ("inner_edges", "train")):
            require(sizes[small] <= sizes[large], path, f"parts.{number}.{small}: more than {large}")
    for name in ("users", "items", "train", "validation", "test"):
        told, total = getattr(manifest, name), sum(getattr(part, name) for part in manifest.parts)
        require(told == total, path, f"{name}: {told}, but the parts have {total}")
    require(manifest.train > 0, path, "train: there is no training interaction")
    for kind, stride in (("user", manifest.user_stride), ("item", manifest.item_stride)):
        largest = max(getattr(part, f"{kind}s") for part in manifest.parts)
        require(stride == largest, path, f"{kind}_stride: {stride}, not {largest}")
    for name, value in layout.cut(manifest.parts).items():
        figure = manifest.statistics.get(name, math.nan)
        require(abs(figure - value) <= 1e-9, path, f"statistics.{name}: {figure}, not {value}")


def check_parts(root: Path, manifest: layout.Manifest, parts: Iterable[int], level: Level, threads: int = 1) -> None:
    """Compares the files of some parts with the manifest.

    Args:
        root: the prepared folder.
        manifest: its manifest.
        parts: their numbers.
        level: every byte; or whether each file is there and as long as it was; or nothing.
        threads: files read at a time.

    Raises:
        InputError: a file is missing or was changed, by name.
    """
    jobs = [(part, name) for part in parts for name in part_names(manifest)]

    def check(job: tuple[int, str]) -> None:
        part, name = job
        sizes = manifest.parts[part]
        check_file(layout.part_dir(root, part) / name, sizes.digests[name], sizes.bytes.get(name), level)

    with ThreadPoolExecutor(threads, thread_name_prefix="digests") as pool:
        list(pool.map(check, jobs))


def check_shared(root: Path, manifest: layout.Manifest, level: Level = "full") -> None:
    """Compares the files that belong to no part with the manifest, likewise.

    Raises:
        InputError: as `check_parts`.
    """
    for name, digest in manifest.digests.items():
        check_file(root / name, digest, None, level)


def check_file(path: Path, digest: str, size: int | None, level: Level = "full") -> None:
    """Compares one file; of those in a folder of schema version 1 the size is not known.

    Raises:
        InputError: it is missing or was changed.
    """
    if level == "none":
        return
    try:
        found = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: is not a file{_AGAIN}")
        if size is not None and found != size:
            raise InputError(f"{path}: its bytes changed since it was written: {found:,} of {size:,} are there{_AGAIN}")
        if level == "full" and sha256(path) != digest:
            raise InputError(f"{path}: its bytes changed since it was written (sha256){_AGAIN}")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{_AGAIN}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}{_AGAIN}") from None
