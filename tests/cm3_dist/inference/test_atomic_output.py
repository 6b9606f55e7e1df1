"""Output appears or is replaced when it is complete; a failure leaves what was there; out of memory is one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cm3_dist.config.command_options import run_settings
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import Runtime, distributed
from cm3_dist.inference.atomic_output import stage_file, stage_folder
from cm3_dist.inference.trained_model import open_model
from partition.errors import InputError
from tests.support.nfs import nfs

MARKER = "manifest.json"


@pytest.fixture(scope="module")
def alone() -> Iterator[Runtime]:
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        yield runtime


def test_a_folder_is_replaced_in_one_move(alone: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    for text in ("old", "new"):
        staged = stage_folder(out, alone, MARKER, overwrite=True)
        (staged.folder / MARKER).write_text(text)
        assert out.exists() == (text == "new")  # until it is published, the old one is there
        staged.publish()
        assert (out / MARKER).read_text() == text
    assert list(tmp_path.iterdir()) == [out]

    # Where the file system cannot exchange two folders and the process ends between two renames, both still exist.
    monkeypatch.setattr("partition.files._exchange", lambda one, other: False)
    staged = stage_folder(out, alone, MARKER, overwrite=True)
    (staged.folder / MARKER).write_text("newest")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self == staged.folder:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        staged.publish()
    assert sorted(path.read_text() for path in tmp_path.glob(f"*/{MARKER}")) == ["new", "newest"]
    monkeypatch.undo()
    stage_folder(out, alone, MARKER, overwrite=True)  # the next one puts the old one back first
    assert (out / MARKER).read_text() == "new"


def test_open_files_on_nfs_are_no_failure(alone: Runtime, tmp_path: Path) -> None:
    file, folder = tmp_path / "lists.jsonl", tmp_path / "out"
    with nfs(lambda name: name in ("open", MARKER)):
        for _ in range(2):
            staged = stage_file(file, alone, True)
            (staged.folder / file.name).write_text("lists")
            (staged.folder / "open").touch()
            staged.publish()
            staged = stage_folder(folder, alone, MARKER, True)
            (staged.folder / MARKER).write_text("rows")
            staged.publish()
    assert file.read_text() == "lists"
    assert (folder / MARKER).read_text() == "rows"


def test_a_failure_leaves_what_was_there(alone: Runtime, tmp_path: Path) -> None:
    file, folder = tmp_path / "lists.jsonl", tmp_path / "out"
    file.write_text("old")
    folder.mkdir()
    (folder / MARKER).write_text("old")
    for staged in (stage_file(file, alone, True), stage_folder(folder, alone, MARKER, True)):
        with pytest.raises(InputError) as refused, staged.writing():
            raise OSError(28, "No space left on device", str(staged.folder / "x"))
        assert refused.value.code == "output.unwritable"
    assert sorted(tmp_path.iterdir()) == [file, folder]
    assert file.read_text() == (folder / MARKER).read_text() == "old"


def test_refusals(alone: Runtime, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/else").touch()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / MARKER).touch()
    for code, stage in {
        "output.exists": lambda: stage_file(tmp_path / "file", alone, False),
        "output.not-ours": lambda: stage_file(tmp_path / "folder", alone, True),
    }.items():
        with pytest.raises(InputError) as refused:
            stage()
        assert refused.value.code == code
    for code, name, overwrite in (
        ("output.exists", "ours", False),
        ("output.not-ours", "folder", True),
        ("output.not-ours", "file", True),
    ):
        with pytest.raises(InputError) as refused:
            stage_folder(tmp_path / name, alone, MARKER, overwrite)
        assert refused.value.code == code


def test_out_of_memory_is_explained(finished_run: Path) -> None:
    with pytest.raises(InputError) as refused, open_model(run_settings(finished_run, [])):
        raise MemoryError
    assert refused.value.code == "memory.exhausted"
    assert "evaluate.item_block" in str(refused.value)
