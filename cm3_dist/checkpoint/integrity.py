"""The files of one checkpoint besides its tensors, and the checks that it is complete and unchanged.

`SHA256SUMS` lists the digest of every other file in the format of `sha256sum --check SHA256SUMS`. Loading compares the
digests with the files, so any change of a file is noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3_dist.errors import InputError
from partition import files
from partition.files import replace_folder, sha256, write_text

PROGRESS, SUMS = "progress.json", "SHA256SUMS"
METADATA = ".metadata"  # DCP's
FORMAT = 2  # format 1 (version 0.1.0) had its digests in progress.json
FILE_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9._-]+")  # neither . nor ..
_LINE = re.compile(rf"([0-9a-f]{{64}})  ({FILE_NAME.pattern})\n")
TORN = "checkpoint.torn"  # code of the errors about a damaged file
_ELSE = "; resume from another checkpoint, or with --resume auto"


@dataclass(frozen=True)
class Record:
    """The content of progress.json: the caller's JSON, and the name of the best checkpoint so far."""

    progress: dict[str, Any]
    best: str | None


def write_record(folder: Path, record: Record, digests: dict[str, str]) -> None:
    """Writes progress.json and SHA256SUMS atomically and durably.

    Args:
        folder: the checkpoint.
        record: content of progress.json.
        digests: file name -> SHA-256 of the tensors' files.

    Raises:
        OSError: a file cannot be written.
        ValueError: `record` holds NaN or infinity.
    """
    content = {"format": FORMAT, "progress": record.progress, "best": record.best}
    write_text(folder / PROGRESS, json.dumps(content, indent=1, allow_nan=False) + "\n")
    sums = {**digests, METADATA: sha256(folder / METADATA), PROGRESS: sha256(folder / PROGRESS)}
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def read_record(folder: Path) -> Record:
    """Reads progress.json.

    Raises:
        InputError: it is missing, damaged, or of another format.
    """
    path = folder / PROGRESS
    sums = read_sums(folder)
    check_files(folder, {PROGRESS: sums[PROGRESS]})
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not JSON
        raise InputError(f"{path}: cannot be read as JSON: {error}{_ELSE}", TORN) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: is not of format {FORMAT}, which this program reads{_ELSE}", "checkpoint.format")
    kinds: dict[str, Any] = {"progress": dict, "best": (str, type(None))}
    for name, kind in kinds.items():
        if not isinstance(content.get(name, 0), kind):
            raise InputError(f"{path}: {name!r} is missing or of the wrong type{_ELSE}", TORN)
    return Record(content["progress"], content["best"])


def read_sums(folder: Path) -> dict[str, str]:
    """Reads SHA256SUMS: file name -> digest.

    Raises:
        InputError: it is missing or damaged, or lists a file outside the folder.
    """
    path = folder / SUMS
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, so {folder} is not a complete checkpoint{_ELSE}", TORN) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}{_ELSE}", TORN) from None
    lines = text.splitlines(keepends=True)
    matches = [_LINE.fullmatch(line) for line in lines]
    if bad := [number for number, match in enumerate(matches, 1) if match is None]:
        raise InputError(f"{path}:{bad[0]}: is not a digest and the name of a file of the checkpoint{_ELSE}", TORN)
    sums = {match[2]: match[1] for match in matches if match is not None}
    if missing := [name for name in (METADATA, PROGRESS) if name not in sums]:
        raise InputError(f"{path}: does not list {missing[0]}{_ELSE}", TORN)
    if len(sums) < len(lines):
        raise InputError(f"{path}: lists a file twice{_ELSE}", TORN)
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
            message = f"{folder / name}: cannot be read ({error.strerror}), though {folder / SUMS} lists it{_ELSE}"
            raise InputError(message, TORN) from None
        if found != digest:
            raise InputError(f"{folder / name}: differs from what was saved (sha256){_ELSE}", TORN)


def put_in_place(folder: Path, final: Path) -> None:
    """Renames a complete checkpoint; one of that name is exchanged for it and deleted."""
    replace_folder(folder, final, final.with_suffix(".old.tmp"))


def remove(path: Path) -> None:
    """Deletes a checkpoint; it is renamed first, so a partly deleted one is never taken for complete."""
    doomed = path.with_suffix(".old.tmp")
    path.rename(doomed)
    files.remove(doomed)


def remove_all(paths: Iterable[Path]) -> None:
    """Deletes the folders that interrupted saves left behind."""
    for path in paths:
        files.remove(path)
