"""Files and folders are written whole or not at all, whatever interrupts the writer."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from partition import files
from tests.support.nfs import nfs


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with files.atomic_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_a_file_that_fails_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        files.write_text(path, "new")
    assert error.value.filename == str(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("exchanging", [True, False])
@pytest.mark.parametrize("existing", [None, "empty", "full"])
def test_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: str | None, exchanging: bool
) -> None:
    path = tmp_path / "folder"
    if existing:
        path.mkdir()
    if existing == "full":
        (path / "old").mkdir()
    if not exchanging:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    with files.atomic_folder(path) as temporary:
        (temporary / "new").mkdir()
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_fails_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(OSError, match="No such file") as error, files.atomic_folder(path) as temporary:
        (temporary / "nowhere" / "file").touch()
    assert error.value.filename == str(path / "nowhere" / "file")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_what_killed_processes_left_is_deleted_or_put_back(tmp_path: Path) -> None:
    for name in (".out.12.tmp", ".out.13.old", ".out.14.old", ".out.x.tmp", ".other.12.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / ".out.15.tmp").touch()
    files.recover(tmp_path / "out")
    assert names(tmp_path) == [".other.12.tmp", ".out.x.tmp", "out"]
    assert names(tmp_path / "out") == [".out.13.old"]


def test_open_files_that_nfs_keeps_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS renames a deleted file that is still open, and the folder cannot be deleted then."""
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for name in ("open", "closed"):
        (folder / "inner" / name).touch()
    with nfs(lambda name: name == "open"):
        files.remove(folder)
        assert names(folder / "inner") == [".nfs0000"]
        files.remove(folder)
        (folder / "inner" / "more").touch()
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", full)
            with pytest.raises(OSError, match="No space left"):
                files.remove(folder)
    files.remove(folder)
    assert names(tmp_path) == []


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_replaced_folder_with_open_files_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanging: bool
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "open").touch()
    if not exchanging:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    with nfs(lambda name: name == "open"), files.atomic_folder(path) as temporary:
        (temporary / "new").touch()
    assert names(path) == ["new"]


def test_links_are_deleted_not_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "nowhere")
    assert names(tmp_path) == ["folder"]


def test_digest(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000  # more than is read at a time
    (tmp_path / "file").write_bytes(data)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
