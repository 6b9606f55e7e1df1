"""A folder of images: which file belongs to which item."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from partition.errors import InputError
from partition.extract.reasons import printable


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder by item."""

    paths: dict[str, Path]  # by item id as text
    unused: list[Path]  # files that are no image or have the name of no item, and sub-folders
    entries: int  # of the folder

    @classmethod
    def read(cls, folder: Path, ids: Iterable[object]) -> ImageFolder:
        """Finds the file of each item: ID.jpg or another suffix that Pillow opens, in upper or lower case.

        Numbers may be padded with zeros: 0007.jpg belongs to item 7, unless there is an item "0007".

        Raises:
            InputError: no image, or two that could be meant by an item.
        """
        entries, suffixes = sorted(folder.iterdir()), image_suffixes()
        images = [path for path in entries if path.suffix.lower() in suffixes and not path.is_dir()]
        if not images:
            message = f"{folder}: no image among its {len(entries):,} entries; expected ID.jpg, ID.png or similar"
            raise InputError(message, "extract.image")
        names = {_normal(str(item)) for item in ids}
        candidates = defaultdict(list)
        for path in images:
            name = _name_of(path, names)
            if name is not None:
                candidates[name].append(path)
        _refuse_two(folder, candidates)
        paths = {name: found[0] for name, found in candidates.items()}
        used = set(paths.values())
        return cls(paths, [path for path in entries if path not in used], len(entries))

    def get(self, item: object) -> Path | None:
        """The image of an item, if it has one."""
        return self.paths.get(_normal(str(item)))


def image_suffixes() -> frozenset[str]:
    """Suffixes of the formats that the installed Pillow reads, in lower case."""
    from PIL import Image

    suffixes = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in suffixes.items() if kind in Image.OPEN)


def _name_of(path: Path, names: set[str]) -> str | None:
    stem = _normal(path.stem)
    if stem in names:
        return stem
    if stem.isascii() and stem.isdigit():
        number = stem.lstrip("0") or "0"
        return number if number in names else None
    return None


def _normal(name: str) -> str:
    """One spelling of accents: macOS splits them into two characters in names of files."""
    return unicodedata.normalize("NFC", name)


def _refuse_two(folder: Path, candidates: dict[str, list[Path]]) -> None:
    double = [name for name, found in candidates.items() if len(found) > 1]
    if double:
        files = printable(" and ".join(path.name for path in candidates[double[0]][:2]))
        many = f"{len(double):,} items have" if len(double) > 1 else "an item has"
        message = f"{folder}: {many} more than one image; first: item {double[0]!r} has {files}"
        raise InputError(f"{message}; keep one of each", "extract.image")
