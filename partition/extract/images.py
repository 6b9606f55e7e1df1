"""Loads one image as RGB."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from partition.extract.reasons import one_bad_item, printable, reason_of
from partition.extract.rgb import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

# Image processors scale the shorter side to a fixed size: a strip of pixels would take gigabytes.
_MOST_STRETCHED = 200
# Larger images are scaled down to this many pixels when they are loaded: encoders take far fewer, and two batches of
# images are in memory.
_MOST_PIXELS = 1 << 24


class UnreadableError(Exception):
    """What is wrong with an image; the message is one line."""


@dataclass(frozen=True)
class Picture:
    """An image: a file, the bytes of one, or why there is none."""

    path: Path | None = None
    data: bytes = b""
    wrong: str = ""

    def load(self) -> Image:
        """The image as RGB (`partition.extract.rgb`).

        Raises:
            UnreadableError: the reason.
        """
        if self.wrong:
            raise UnreadableError(self.wrong)
        try:
            return _loaded(io.BytesIO(self.data) if self.path is None else self.path)
        except BaseException as error:  # a damaged file makes Pillow raise nearly anything
            if not one_bad_item(error):
                raise
            raise UnreadableError(self._reason(error)) from None

    def _reason(self, error: BaseException) -> str:
        from PIL import UnidentifiedImageError

        reason = reason_of(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "is no image of a known format"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        return reason if self.path is None else printable(f"{self.path}: {reason}")


def _loaded(source: Path | io.BytesIO) -> Image:
    from PIL import Image

    with Image.open(source) as opened:
        width, height = opened.size
        if max(width, height) > _MOST_STRETCHED * min(width, height):
            message = f"{width:,} x {height:,} pixels: one side is more than {_MOST_STRETCHED} times the other"
            raise ValueError(message)
        image = to_rgb(opened)
        share = (_MOST_PIXELS / (width * height)) ** 0.5
        if share < 1:
            smaller = (max(1, int(image.width * share)), max(1, int(image.height * share)))
            return image.resize(smaller, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return image
