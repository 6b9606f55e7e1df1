"""Pixels of any kind as RGB with 8 bits: transparency, deep pixels, orientation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Whole numbers and floats are scaled from 0 to the first of these that is not exceeded, as their own format would be:
# 8, 12 or 16 bits.
_TOPS = (255, 4095, 65535)
_ORIENTATION = 0x0112  # EXIF tag


def to_rgb(opened: Image) -> Image:
    """Returns a picture as RGB, upright.

    Transparent pixels are put on white. Pixels of 16 bits, 32 bits or floats are scaled to 8 bits by their range; 8-bit
    pixels keep their values. Of several frames the first one counts.

    Args:
        opened: as `PIL.Image.open` returns it.

    Raises:
        Exception: any, for a damaged file.
    """
    turn = _turn(opened)
    if opened.mode.startswith(("I", "F")):
        opened = _scaled(opened)
    elif opened.has_transparency_data:
        opened = _on_white(opened)
    image = opened.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image) -> Image:
    import PIL.Image

    image = image.convert("RGBA")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)


def _scaled(image: Image) -> Image:
    """8-bit grey of a picture whose one channel is deeper."""
    import PIL.Image

    values = np.asarray(image, np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("no pixel has a finite value")
    low, high = float(values[finite].min()), float(values[finite].max())
    low, high = _range(low, high, image.mode.startswith("F"))
    values = np.where(finite, values, low)  # what was not measured is black
    grey = np.rint((values - low) / (high - low) * 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return PIL.Image.fromarray(grey)


def _range(low: float, high: float, floats: bool) -> tuple[float, float]:
    """The values that become black and white: those of a known format if all fit in it, else the lowest and highest."""
    if low >= 0:
        for top in (1, *_TOPS) if floats else _TOPS:
            if high <= top:
                return 0, top
    return low, high if high > low else low + 1


def _turn(image: Image) -> Any:
    """How EXIF says the picture has to be turned; None if it does not, or if the EXIF block is broken."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(_ORIENTATION))
    except Exception:  # of a damaged block, nearly anything; the pixels do not depend on it
        return None
