"""Pixels of every kind that Pillow opens, as RGB."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="no extra `extract`: make extract installs it")

from PIL import Image

from partition.extract.images import Picture

RED = (220, 30, 30)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def loaded(image: Image.Image, kind: str = "PNG", **options: Any) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return np.asarray(Picture(data=buffer.getvalue()).load())


def test_8_bits_stay_as_they_are() -> None:
    np.testing.assert_array_equal(loaded(Image.fromarray(PIXELS)), PIXELS)
    opaque = np.dstack([PIXELS, np.full((6, 8), 255, np.uint8)])
    np.testing.assert_array_equal(loaded(Image.fromarray(opaque)), PIXELS)
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(loaded(Image.fromarray(grey)), np.repeat(grey[..., None], 3, axis=2))


def with_a_clear_half(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """Red on the left, and on the right transparent pixels that are black without their transparency."""
    image = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 4, 6))
    if mode == "RGBA":
        return image, {}
    if mode == "LA":
        return image.convert("LA"), {}
    if mode == "P":
        palette = image.convert("RGB").quantize(4)
        return palette, {"transparency": palette.getpixel((7, 0))}
    return image.convert("RGB"), {"transparency": (0, 0, 0)}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_are_white(mode: str) -> None:
    image, options = with_a_clear_half(mode)
    found = loaded(image, **options)
    assert (found[:, 4:] == 255).all()
    wanted = np.array(Image.new("RGB", (1, 1), RED).convert("L")) if mode == "LA" else RED
    assert (found[:, :4] == wanted).all()


def test_half_transparent_pixels_are_half_white() -> None:
    found = loaded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))
    assert (found == 127).all()


@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_deep_pixels_are_scaled_by_the_bits_they_need(top: int) -> None:
    ramp = np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)
    found = loaded(Image.fromarray(ramp))
    np.testing.assert_array_equal(found[..., 0], np.rint(ramp / top * 255))
    assert len(np.unique(found)) == 64


def test_a_transparent_level_of_16_bits_is_white() -> None:
    ramp = np.array([[0, 40_000], [50_000, 65_535]], np.uint16)
    assert loaded(Image.fromarray(ramp), transparency=0)[..., 0].tolist() == [[255, 156], [195, 255]]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-2.0, 0.0, 2.0], [0, 128, 255]),
        ([7e5, 7e5, 8e5], [0, 0, 255]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
        ([0.0, np.nan, 1.0], [0, 0, 255]),
    ],
)
def test_floats_are_scaled_by_their_range(values: list[float], wanted: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert loaded(image, "TIFF")[0, :, 0].tolist() == wanted


def test_whole_numbers_of_32_bits_are_scaled_by_their_range() -> None:
    image = Image.fromarray(np.array([[-100, 0, 100]], np.int32))
    assert loaded(image, "TIFF")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_keeps_its_colours(kind: str) -> None:
    image = Image.new("RGB", (16, 16), RED).convert("CMYK")
    found = loaded(image, kind).astype(int)
    assert np.abs(found - RED).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as opened:
        wanted = ImageOps.exif_transpose(opened)
    np.testing.assert_array_equal(np.asarray(Picture(data=buffer.getvalue()).load()), np.asarray(wanted))


def test_the_first_of_several_frames_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert (loaded(frames[0], "GIF", save_all=True, append_images=frames[1:]) == (255, 0, 0)).all()
