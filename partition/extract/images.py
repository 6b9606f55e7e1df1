"""Pictures: files of a folder by their names, and one picture as RGB, or why it cannot be read."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from partition.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


class UnreadableError(Exception):
    """A picture that is no picture, is cut off, or is not there."""


@dataclass(frozen=True)
class Picture:
    """A file, or its bytes."""

    path: Path | None = None
    data: bytes = b""

    def load(self) -> Image:
        """As RGB, turned as its EXIF data say.

        Raises:
            UnreadableError: with the reason, one line.
        """
        from PIL import Image, ImageOps

        try:
            with Image.open(io.BytesIO(self.data) if self.path is None else self.path) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except FileNotFoundError:
            raise UnreadableError(f"{self.path}: no such file") from None
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            place = "" if self.path is None else f"{self.path}: "
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableError(reason if str(self.path) in reason else place + reason) from None


def folder_index(folder: Path) -> dict[str, Path]:
    """The pictures of a folder (not searched deeper) by their names without the suffix, which are items' ids.

    Raises:
        InputError: no picture, or two of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise InputError(f"{path}: a second picture of item {path.stem!r}, after {found[path.stem].name}")
        found[path.stem] = path
    if not found:
        raise InputError(f"{folder}: no picture in it; looked for ID{', ID'.join(sorted(SUFFIXES))}")
    return found
