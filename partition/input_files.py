"""The files of a place that input is read from, and what shows whether one has changed since.

A place is what the user gives: a file, a folder, a pattern such as `logs/*.csv`, or a URI such as `s3://bucket/logs`
(`partition.read.places`). A local folder stands for every file below it.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from partition.errors import InputError

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Stamp:
    """What a file looks like from outside; after any change of its content a stamp differs."""

    size: int  # bytes
    modified: int  # nanoseconds since 1970
    inode: int = 0  # 0 if the file is remote
    device: int = 0  # 0 if it is remote, or on a file system without a device of its own

    def difference(self, now: Stamp) -> str:
        """What has changed, in words."""
        if self.size != now.size:
            return f"had {self.size:,} bytes and has {now.size:,}"
        return "has another time of change" if self.modified != now.modified else "is another file of that name"


def is_uri(place: str) -> bool:
    """Whether a place is a URI, such as s3://bucket/logs."""
    return _URI.match(place) is not None


def stamps(place: str) -> dict[str, Stamp]:
    """The files of a place in the order of their names, without hidden ones: those whose name begins with a dot.

    Returns:
        Full name -> stamp; nothing for a place where no file is.

    Raises:
        InputError: `file.unreadable`, a remote place cannot be listed.
    """
    if is_uri(place):
        return _remote(place)
    found = [place] if os.path.exists(place) else glob.glob(place, recursive=True)
    files = [file for name in found for file in (_below(Path(name)) if os.path.isdir(name) else [Path(name)])]
    return {str(file): _stamp(file) for file in sorted({file.resolve() for file in files})}


def _below(folder: Path) -> Iterator[Path]:
    """All files below a folder, also through links; a folder that links lead back to is passed once."""
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(name)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        yield from (file for file in (Path(name, inner) for inner in files if inner[0] != ".") if file.is_file())


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    # NFS, Lustre and tmpfs have device numbers that every machine and every mount counts anew: major 0.
    device = found.st_dev if os.major(found.st_dev) else 0
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino, device)


def _remote(uri: str) -> dict[str, Stamp]:
    """The files of a URI, as preparation finds them there."""
    from partition.read.places import listing, place_of  # late: `--help` answers without Arrow

    place = place_of(uri)
    if place.is_local:
        return stamps(place.path)
    try:
        found = listing(uri).places
    except InputError as error:
        if error.code == "file.missing":
            return {}
        raise
    return {name: Stamp(size, modified) for name, size, modified, _ in (place.stamp() for place in found)}
