"""Compares the files of a prepared folder with its manifest, for everything that is about to read them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from partition.errors import InputError, require
from partition.files import sha256
from partition.folder import layout
from partition.folder.manifest import Manifest, cut_statistics

Level = Literal["full", "sizes", "none"]
_AGAIN = "; copy the folder again, or prepare the data again"


def check_manifest(root: Path, manifest: Manifest) -> None:
    """Checks that the manifest does not contradict itself, so that what is read by it fits together.

    Raises:
        InputError: `manifest.contradiction`; the message names the field.
    """

    def check(right: bool, message: str) -> None:
        require(right, root / layout.MANIFEST, message, "manifest.contradiction")

    check(bool(manifest.parts), "parts: there is none")
    check(bool(manifest.modalities), "modalities: there is none")
    names = [modality.name for modality in manifest.modalities]
    shared = {*map(layout.basis_file, names), *map(layout.order_file, ("user", "item"))}
    for name in manifest.digests:
        check(name in shared, f"digests: {name!r} is no file of a prepared folder")
    check(len(set(names)) == len(names), f"modalities: a name occurs twice in {', '.join(names)}")
    for modality in manifest.modalities:
        name, dim = f"modalities.{modality.name}", modality.dim
        check(modality.source_dim >= dim, f"{name}.source_dim: {modality.source_dim} is below its dim, {dim}")
    files = manifest.part_files
    for number, part in enumerate(manifest.parts):
        sizes = part.model_dump(exclude={"digests", "bytes"})
        for name, size in sizes.items():
            check(size >= 0, f"parts.{number}.{name}: {size} is negative")
        check(set(part.digests) == set(files), f"parts.{number}.digests: expected {', '.join(files)}")
        check(part.users > 0 and part.items > 0, f"parts.{number}: has no user or no item")
        for small, large in (("active_users", "users"), ("active_items", "items"), ("inner_edges", "train")):
            check(sizes[small] <= sizes[large], f"parts.{number}.{small}: more than {large}")
    for name in ("users", "items", "train", "validation", "test"):
        stated, total = getattr(manifest, name), sum(getattr(part, name) for part in manifest.parts)
        check(stated == total, f"{name}: {stated}, but the parts have {total}")
    check(manifest.train > 0, "train: there is no training interaction")
    for kind, stride in (("user", manifest.user_stride), ("item", manifest.item_stride)):
        largest = max(getattr(part, f"{kind}s") for part in manifest.parts)
        check(stride == largest, f"{kind}_stride: {stride}, not {largest}")
    for name, value in cut_statistics(manifest.parts).items():
        stated = manifest.statistics.get(name, math.nan)
        check(abs(stated - value) <= 1e-9, f"statistics.{name}: {stated}, not {value}")


def check_parts(root: Path, manifest: Manifest, parts: Iterable[int], level: Level, threads: int = 1) -> None:
    """Compares the files of some parts with the manifest.

    Args:
        root: the prepared folder.
        manifest: its manifest.
        parts: the numbers of the parts.
        level: `full` compares every byte, `sizes` that each file is there in its size, `none` nothing.
        threads: files read at the same time.

    Raises:
        InputError: `prepared.missing` or `prepared.changed`; the message names the file.
    """
    checks = []
    for part in parts:
        sizes, folder = manifest.parts[part], layout.part_dir(root, part)
        for name in manifest.part_files:
            checks.append(partial(check_file, folder / name, sizes.digests[name], sizes.bytes.get(name), level))
    with ThreadPoolExecutor(threads, thread_name_prefix="digests") as pool:
        for done in [pool.submit(check) for check in checks]:
            done.result()


def check_shared(root: Path, manifest: Manifest, level: Level = "full") -> None:
    """Compares the files that belong to no part with the manifest.

    Raises:
        InputError: as `check_parts`.
    """
    for name, digest in manifest.digests.items():
        check_file(root / name, digest, None, level)


def check_file(path: Path, digest: str, size: int | None, level: Level = "full") -> None:
    """Compares one file with its digest and its size; the size is None where the manifest does not have it.

    Raises:
        InputError: as `check_parts`.
    """
    if level == "none":
        return
    changed = f"{path}: its bytes changed since it was written"
    try:
        found = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: is not a file{_AGAIN}", "prepared.changed")
        if size is not None and found != size:
            raise InputError(f"{changed}: {found:,} of {size:,} are there{_AGAIN}", "prepared.changed")
        if level == "full" and sha256(path) != digest:
            raise InputError(f"{changed} (sha256){_AGAIN}", "prepared.changed")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{_AGAIN}", "prepared.missing") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}{_AGAIN}", "file.unreadable") from None
