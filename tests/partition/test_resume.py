"""Results of finished stages are used again by the same command on the same files only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from partition.build import build
from partition.errors import InputError, ResourceError
from partition.options import BuildOptions
from partition.resume import work_folder
from partition.stages import Stages
from tests.support.nfs import nfs
from tests.support.raw_tables import items_table, mmrec, table, write

Command = dict[str, object]


class CutOffError(Exception):
    """Stands for whatever ends a preparation early."""


def another_file(path: Path) -> None:
    """Only the inode differs: the same bytes, and the same time of change."""
    before = path.stat()
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    os.replace(copy, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino != before.st_ino


def cut_off(output: Path, places: list[str], command: Command | None = None) -> bool:
    """Runs a command that is interrupted after its only stage; returns whether the stage was there already."""
    found = []
    with suppress(CutOffError), work_folder(output, command or {}, places) as work:
        found.append(work.has("stage"))
        work.result("stage", lambda path: path.write_text("done"))
        raise CutOffError
    return found[0]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder of logs, a partition of Hive among them."""
    folder = tmp_path / "logs"
    (folder / "day=1").mkdir(parents=True)
    for name in ("a.csv", "b.csv", "notes.txt", "day=1/c.csv", ".hidden"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    ("place", "file"),
    [
        ("{}", "a.csv"),
        ("{}", "day=1/c.csv"),
        ("{}/a.csv", "a.csv"),
        ("{}/*.csv", "b.csv"),
        ("{}/**/*.csv", "day=1/c.csv"),
        ("{}/day=*", "day=1/c.csv"),
        ("file://{}", "day=1/c.csv"),
        ("file://{}/*.csv", "b.csv"),
    ],
)
@pytest.mark.parametrize("change", ["another", "longer", "touched", "gone", "new"])
def test_any_change_of_a_place_empties_the_work_folder(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, file: str, change: str
) -> None:
    places, path = [place.format(logs)], logs / file
    if change == "new":
        path.rename(tmp_path / "kept")
    said = {
        "another": "is another file of that name",
        "longer": f"had {len(file)} bytes and has {len(file) + 1}",
        "touched": "has another time of change",
        "gone": "is gone",
        "new": "was not there at",
    }
    assert [cut_off(tmp_path / "out", places) for _ in range(2)] == [False, True]
    if change == "another":
        another_file(path)
    elif change == "longer":
        path.write_text(file + "+")
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "gone":
        path.unlink()
    else:
        (tmp_path / "kept").rename(path)
    capsys.readouterr()
    assert not cut_off(tmp_path / "out", places)
    line = capsys.readouterr().err
    assert line.startswith(f"{tmp_path / 'out'}: prepared anew, not resumed: {path} {said[change]}")
    assert line.count("\n") == 1
    assert cut_off(tmp_path / "out", places)
    assert not capsys.readouterr().err


def test_hidden_files_and_the_output_itself_are_not_input(logs: Path) -> None:
    output = logs / "prepared"
    assert [cut_off(output, [str(logs)]) for _ in range(2)] == [False, True]
    (logs / ".hidden").write_text("changed")
    output.mkdir()
    (output / "earlier").write_text("an earlier output")
    assert cut_off(output, [str(logs)])


def test_a_folder_that_a_link_leads_back_to_is_listed_once(logs: Path, tmp_path: Path) -> None:
    (logs / "day=1" / "up").symlink_to(logs)
    assert [cut_off(tmp_path / "out", [str(logs)]) for _ in range(2)] == [False, True]


def test_files_that_turn_out_to_be_read_are_watched_too(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, more = tmp_path / "out", tmp_path / "more"
    more.write_text("more")
    with suppress(CutOffError), work_folder(output, {}, [str(logs)]) as work:
        work.result("stage", lambda path: path.write_text("done"))
        work.depends_on([str(more)])
        raise CutOffError
    assert cut_off(output, [str(logs)])
    another_file(more)
    assert not cut_off(output, [str(logs)])
    assert f"{more} is another file of that name" in capsys.readouterr().err


def test_the_line_names_the_option_that_differs(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [str(logs)]
    assert not cut_off(tmp_path / "out", places, {"kcore": 5, "item_graph_k": 10})
    assert not cut_off(tmp_path / "out", places, {"kcore": 5, "item_graph_k": 20})
    assert capsys.readouterr().err.endswith("the interrupted command had another --item-graph-k\n")
    (tmp_path / ".out.work" / "key.json").write_text("{}")
    assert not cut_off(tmp_path / "out", places, {"kcore": 5, "item_graph_k": 20})
    assert capsys.readouterr().err.endswith("it was left by another version of this program\n")


def test_what_is_finished_stays_unless_the_input_is_wrong(logs: Path, tmp_path: Path) -> None:
    def fails(error: Exception) -> bool:
        with suppress(type(error)), work_folder(tmp_path / "out", {}, [str(logs)]) as work:
            work.result("stage", lambda path: path.write_text("done"))
            raise error
        return (tmp_path / ".out.work" / "stage").exists()

    assert fails(ResourceError("too little memory"))
    assert fails(OSError(28, "No space left on device"))
    assert not fails(InputError("wrong"))
    assert not (tmp_path / ".out.lock").exists()


def test_a_stage_that_fails_leaves_nothing_on_the_disk(logs: Path, tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught, work_folder(tmp_path / "out", {}, []) as work:
        work.result("stage", half)
    assert caught.value.filename == str(tmp_path / ".out.work" / "stage")
    assert [path.name for path in (tmp_path / ".out.work").iterdir()] == ["key.json"]


def test_open_files_on_nfs_are_no_failure(logs: Path, tmp_path: Path) -> None:
    output, places = tmp_path / "out", [str(logs)]
    with nfs(lambda name: name == "mapped"):
        with work_folder(output, {}, places) as work:
            work.result("mapped", lambda path: path.write_text("a mapped result"))
        left = [path.name for path in (tmp_path / ".out.work").iterdir()]
        assert left == [".nfs0000"]
        with work_folder(output, {}, places) as work:
            assert not work.has("mapped")
    assert not (tmp_path / ".out.lock").exists()


def of_tables(folder: Path) -> BuildOptions:
    write(folder / "log.parquet", table())
    write(folder / "items.parquet", items_table())
    outside = folder.parent / "outside"
    outside.mkdir()
    for name in ("validation.csv", "test.csv"):
        write(outside / name, table())
    np.save(outside / "audio.npy", np.ones((4, 3), np.float32))
    pq.write_table(items_table().rename_columns(["item", "video", "text"]), outside / "video.parquet")
    return BuildOptions(
        input=[str(folder)],
        output=folder.parent / "out",
        parts=2,
        features=["image", f"audio={outside / 'audio.npy'}", f"video={outside / 'video.parquet'}:video"],
    )


def of_mmrec(folder: Path) -> BuildOptions:
    folder.rmdir()
    mmrec(folder, [(0, 2, 0), (1, 0, 1), (1, 1, 0), (0, 3, 0)])
    (folder / "i_id_mapping.csv").write_text("asin\titemID\n" + "".join(f"B{n}\t{n}\n" for n in range(4)))
    (folder / "u_id_mapping.csv").write_text("name\tuserID\n" + "".join(f"U{n}\t{n}\n" for n in range(2)))
    return BuildOptions(input=[str(folder)], output=folder.parent / "out", parts=2)


@pytest.mark.parametrize(
    ("make", "file"),
    [
        *((of_tables, name) for name in ("in/log.parquet", "in/items.parquet")),
        *((of_tables, name) for name in ("outside/audio.npy", "outside/video.parquet")),
        *((of_mmrec, f"in/{name}") for name in ("in.inter", "text_feat.npy", "i_id_mapping.csv", "u_id_mapping.csv")),
    ],
)
def test_a_preparation_reads_every_changed_file_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], BuildOptions],
    file: str,
) -> None:
    def crash(*_: object) -> None:
        raise CutOffError

    def stages_kept() -> bool:
        with monkeypatch.context() as patch, suppress(CutOffError):
            patch.setattr("partition.build.write_prepared", crash)
            build(options, Stages())
        return "from an earlier run" in capsys.readouterr().out

    (tmp_path / "in").mkdir()
    options = make(tmp_path / "in")
    assert not stages_kept()
    assert stages_kept()
    another_file(tmp_path / file)
    assert not stages_kept()
    assert build(options.model_copy(update={"threads": 2, "memory": "1GB"}), Stages()) == tmp_path / "out"
    assert "from an earlier run" in capsys.readouterr().out
    assert not (tmp_path / ".out.work").exists()
