"""Loading one image: each file gives a picture or a reason, nothing else."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="no extra `extract`: make extract installs it")

from PIL import Image

from partition.extract import images
from partition.extract.images import Picture, UnreadableError

MUTATIONS = 200
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore:Image size:Warning")


def with_exif(kind: str) -> bytes:
    """A picture of noise, 32 x 24, with EXIF of several types of value."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a title", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def mutated(data: bytes, generator: random.Random, begin: int, end: int) -> bytes:
    """The bytes with some of begin ... end - 1 replaced, and about half the time with some lost or added there."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 2, 5, 20))):
        place, action = generator.randrange(begin, end), generator.random()
        changed[place : place + 1] = [generator.randrange(256)]
        if action < 0.15:
            del changed[place : place + generator.randrange(1, 9)]
        elif action < 0.3:
            changed[place:place] = generator.randbytes(generator.randrange(1, 9))
        end = min(end, len(changed))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_bytes_give_a_picture_or_a_reason(kind: str) -> None:
    generator, data = random.Random(0), with_exif(kind)
    read, reasons = 0, set()
    for number in range(MUTATIONS):
        end = len(data) if number % 2 else min(300, len(data))  # headers and metadata, or anywhere
        damaged = Picture(data=mutated(data, generator, 0, end))
        try:
            assert damaged.load().mode == "RGB"
            read += 1
        except UnreadableError as error:
            reasons.add(str(error))
    assert reasons
    assert not [reason for reason in reasons if "\n" in reason or " at 0x" in reason]
    assert read or kind == "PNG"  # whose checksums notice everything


def test_damaged_exif_keeps_the_picture() -> None:
    generator, data = random.Random(0), with_exif("JPEG")
    begin = data.index(b"Exif\0\0") + 6
    end = begin - 6 + int.from_bytes(data[begin - 8 : begin - 6], "big") - 2
    whole = np.asarray(Picture(data=data).load())
    for _ in range(MUTATIONS):
        changed = bytearray(data)
        for _ in range(generator.choice((1, 2, 5, 20))):
            changed[generator.randrange(begin, end)] = generator.randrange(256)
        found = np.asarray(Picture(data=bytes(changed)).load())
        assert sorted(found.shape) == sorted(whole.shape)
        assert found.sum() == whole.sum()  # the same pixels, however they are turned


def test_exif_that_cannot_be_read_keeps_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise struct.error("unpack requires a buffer of 8 bytes")

    monkeypatch.setattr(Image.Image, "getexif", fails)
    assert Picture(data=with_exif("PNG")).load().size == (32, 24)  # not turned


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError("deep"), ZeroDivisionError("by 0")])
def test_whatever_pillow_raises_is_a_reason(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UnreadableError, match=type(error).__name__):
        Picture(data=b"x").load()


def test_who_stops_the_program_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(KeyboardInterrupt):
        Picture(data=b"x").load()


def test_reasons_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    Image.new("RGB", (1, 20_000)).save(tmp_path / "tall.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    (tmp_path / "folder.jpg").mkdir()
    wanted = {
        "text.jpg": "is no image of a known format",
        "tall.png": "1 x 20,000 pixels: one side is more than 200 times the other",
        "bomb.png": "could be decompression bomb",
        "folder.jpg": "Is a directory",
        "absent.jpg": "No such file or directory",
        "nul\0.jpg": "embedded null byte",
    }
    for name, reason in wanted.items():
        with pytest.raises(UnreadableError) as caught:
            Picture(tmp_path / name).load()
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert reason in str(caught.value)


def test_large_pictures_are_scaled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MOST_PIXELS", 600)
    buffer = io.BytesIO()
    Image.new("RGB", (120, 40), (9, 8, 7)).save(buffer, "PNG")
    found = np.asarray(Picture(data=buffer.getvalue()).load())
    assert found.shape == (14, 42, 3)
    assert (found == (9, 8, 7)).all()
    monkeypatch.setattr(images, "_MOST_PIXELS", 4800)
    assert Picture(data=buffer.getvalue()).load().size == (120, 40)


def test_small_pictures_are_pictures() -> None:
    for size in ((1, 1), (1, 200), (3, 3)):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "GIF")
        assert Picture(data=buffer.getvalue()).load().size == size
