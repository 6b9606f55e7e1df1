"""Images: the files of a folder by item id, and loading one as RGB."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from partition.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


class UnreadableError(Exception):
    """A file that is not an image, is truncated, or does not exist."""


@dataclass(frozen=True)
class Picture:
    """An image: a file, or the bytes of one."""

    path: Path | None = None
    data: bytes = b""

    def load(self) -> Image:
        """The image as RGB, rotated as its EXIF data say.

        Raises:
            UnreadableError: the reason, in one line.
        """
        from PIL import Image, ImageOps

        try:
            with Image.open(io.BytesIO(self.data) if self.path is None else self.path) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except FileNotFoundError:
            raise UnreadableError(f"{self.path}: no such file") from None
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            place = "" if self.path is None else f"{self.path}: "
            reason = one_line(error)
            raise UnreadableError(reason if str(self.path) in reason else place + reason) from None


def folder_index(folder: Path) -> dict[str, Path]:
    """The images of a folder (without sub-folders) by their names without suffix, which are item ids.

    Raises:
        InputError: no image, or two of one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            message = f"{path}: a second image of item {path.stem!r}, after {found[path.stem].name}"
            raise InputError(message, "extract.image")
        found[path.stem] = path
    if not found:
        raise InputError(f"{folder}: no image in it; looked for ID{', ID'.join(sorted(SUFFIXES))}", "extract.image")
    return found
