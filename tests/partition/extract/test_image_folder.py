"""Which file of a folder is the image of which item."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="no extra `extract`: make extract installs it")

from partition.errors import InputError
from partition.extract.image_folder import ImageFolder, image_suffixes


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).touch()
    return tmp_path


def found(folder: ImageFolder, item: object) -> str | None:
    path = folder.get(item)
    return None if path is None else path.name


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".jfif", ".avif", ".tif", ".bmp", ".Webp", ".jp2", ".ppm"])
def test_any_suffix_that_pillow_opens(tmp_path: Path, suffix: str) -> None:
    read = ImageFolder.read(folder_of(tmp_path, f"a.b{suffix}"), ["a.b"])
    assert found(read, "a.b") == f"a.b{suffix}"
    assert read.unused == []


def test_what_pillow_only_writes_is_no_image() -> None:
    assert ".pdf" not in image_suffixes()
    assert ".png" in image_suffixes()


def test_zeros_before_a_number(tmp_path: Path) -> None:
    read = ImageFolder.read(folder_of(tmp_path, "0007.jpg", "12.jpg", "000.png", "0x1.png"), [7, 12, 0, 1])
    assert [found(read, item) for item in (7, 12, 0, 1)] == ["0007.jpg", "12.jpg", "000.png", None]
    assert [path.name for path in read.unused] == ["0x1.png"]


def test_an_item_with_the_very_name_comes_first(tmp_path: Path) -> None:
    read = ImageFolder.read(folder_of(tmp_path, "007.jpg"), ["7", "007"])
    assert (found(read, "7"), found(read, "007")) == (None, "007.jpg")


@pytest.mark.parametrize(
    ("files", "item", "named"),
    [
        (("7.jpg", "0007.jpg"), 7, "0007.jpg and 7.jpg"),
        (("07.jpg", "007.jpg"), 7, "007.jpg and 07.jpg"),
        (("a.jpg", "a.png"), "a", "a.jpg and a.png"),
        (("a.jpg", "a.JPG"), "a", "a.JPG and a.jpg"),
    ],
)
def test_two_images_of_one_item_are_refused(tmp_path: Path, files: tuple[str, ...], item: object, named: str) -> None:
    folder = folder_of(tmp_path, *files, "other.jpg", "other.png")
    with pytest.raises(
        InputError, match=f"an item has more than one image; first: item '{item}' has {named}"
    ) as caught:
        ImageFolder.read(folder, [item])
    assert caught.value.code == "extract.image"
    with pytest.raises(InputError, match="2 items have more than one image"):
        ImageFolder.read(folder, [item, "other"])


def test_accents_are_one_letter_or_two(tmp_path: Path) -> None:
    read = ImageFolder.read(folder_of(tmp_path, "Ko\u0308ln.jpg"), ["K\u00f6ln"])
    assert found(read, "K\u00f6ln") == "Ko\u0308ln.jpg"


def test_what_is_not_used_is_listed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jpg", "b.jpg", "a.json", "Thumbs.db", os.fsdecode(b"\xff.jpg"))
    (folder / "more").mkdir()
    (folder / "c.jpg").mkdir()
    read = ImageFolder.read(folder, ["a", "c"])
    assert {path.name for path in read.unused} == {"b.jpg", "a.json", "Thumbs.db", "more", "c.jpg", "\udcff.jpg"}
    assert read.entries == 7


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image among its 1 entries") as caught:
        ImageFolder.read(folder_of(tmp_path, "a.txt"), ["a"])
    assert caught.value.code == "extract.image"
