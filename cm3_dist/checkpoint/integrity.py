"""The files of one checkpoint besides its tensors: what they must hold to be taken for a whole one, and safe writing.

`SHA256SUMS` lists the digest of every other file, in the form that `sha256sum --check SHA256SUMS` reads. It is compared
with what is found byte by byte, so that no change of any file goes unnoticed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3_dist.errors import InputError
from partition.files import replace_folder, sha256, write_text

PROGRESS, SUMS = "progress.json", "SHA256SUMS"
METADATA = ".metadata"  # DCP's
FORMAT = 2  # 1 (version 0.1.0) had its digests in progress.json
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+)\n")
_ELSE = "; resume from another checkpoint, or with --resume auto"


@dataclass(frozen=True)
class Record:
    """What progress.json holds: JSON of the caller's, and the name of the best checkpoint so far."""

    progress: dict[str, Any]
    best: str | None


def write_record(folder: Path, record: Record, digests: dict[str, str]) -> None:
    """Writes progress.json and SHA256SUMS; `digests` are those of the tensors' files. Whole and on the disk.

    Raises:
        OSError: the disk's reason.
        ValueError: `record` holds NaN or infinity.
    """
    content = {"format": FORMAT, "progress": record.progress, "best": record.best}
    write_text(folder / PROGRESS, json.dumps(content, indent=1, allow_nan=False) + "\n")
    sums = {**digests, METADATA: sha256(folder / METADATA), PROGRESS: sha256(folder / PROGRESS)}
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def read_record(folder: Path) -> Record:
    """Reads progress.json.

    Raises:
        InputError: it is missing, damaged, or of another version.
    """
    path = folder / PROGRESS
    sums = read_sums(folder)
    check_files(folder, {PROGRESS: sums[PROGRESS]})
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not JSON
        raise InputError(f"{path}: cannot be read as JSON: {error}{_ELSE}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: is not of format {FORMAT}, which this program reads{_ELSE}")
    kinds: dict[str, Any] = {"progress": dict, "best": (str, type(None))}
    for name, kind in kinds.items():
        if not isinstance(content.get(name, 0), kind):
            raise InputError(f"{path}: {name!r} is missing or of the wrong type{_ELSE}")
    return Record(content["progress"], content["best"])


def read_sums(folder: Path) -> dict[str, str]:
    """The digests by file name.

    Raises:
        InputError: SHA256SUMS is missing or damaged, or lists a file outside of the folder.
    """
    path = folder / SUMS
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, so {folder} is no whole checkpoint{_ELSE}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}{_ELSE}") from None
    lines = text.splitlines(keepends=True)
    matches = [_LINE.fullmatch(line) for line in lines]
    if bad := [number for number, match in enumerate(matches, 1) if match is None]:
        raise InputError(f"{path}:{bad[0]}: is not a digest and the name of a file of the checkpoint{_ELSE}")
    sums = {match[2]: match[1] for match in matches if match is not None}
    if missing := [name for name in (METADATA, PROGRESS) if name not in sums]:
        raise InputError(f"{path}: does not list {missing[0]}{_ELSE}")
    if len(sums) < len(lines):
        raise InputError(f"{path}: lists a file twice{_ELSE}")
    return sums


def check_files(folder: Path, sums: dict[str, str]) -> None:
    """Compares files with their digests.

    Raises:
        InputError: one is missing or differs.
    """
    for name, digest in sums.items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise InputError(f"{folder / name}: cannot be read ({error.strerror}){_ELSE}") from None
        if found != digest:
            raise InputError(f"{folder / name}: differs from what was saved (sha256){_ELSE}")


def put_in_place(folder: Path, final: Path) -> None:
    """Renames a complete checkpoint; one of that name is exchanged for it and deleted."""
    replace_folder(folder, final, final.with_suffix(".old.tmp"))


def remove(path: Path) -> None:
    """Deletes a checkpoint so that half of it is never taken for a whole one."""
    doomed = path.with_suffix(".old.tmp")
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_all(paths: Iterable[Path]) -> None:
    """Deletes what interrupted saves left behind."""
    for path in paths:
        shutil.rmtree(path)
