from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from partition import cli as command
from partition.errors import InputError
from partition.extract.request import Request
from partition.folder.layout import part_dir
from partition.folder.manifest import Manifest, read_manifest
from partition.options import BuildOptions, Options
from partition.resume import work_folder
from partition.synthetic.options import SyntheticOptions
from tests.support.paths import ROOT

EDGES_IGNORED = ["--method", "random"]  # parts by METIS are compared where they are made


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """`python -m partition ...` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["partition", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    return int(stopped.value.code or 0)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sizes = ["--users", 60, "--items", 40, "--interactions", 600, "--clusters", 4, "--modalities", "image:6,text:4"]
    assert run(monkeypatch, "synthetic", "--output", tmp_path / "made", *sizes) == 0
    return tmp_path / "made"


def test_from_synthetic_data_to_a_verified_folder(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "prepared" / "made"
    assert run(monkeypatch, "build", "--input", made, "--parts", 4, "--output", output, "--pca", "image=3") == 0
    said = capsys.readouterr().out
    for stage in ("read", "clean", "split", "features", "parts", "item graph", "write", "Next:"):
        assert f"\n{stage}" in f"\n{said}"
    manifest = read_manifest(output)
    assert (manifest.users, manifest.items, manifest.num_parts) == (60, 40, 4)
    assert manifest.train + manifest.validation + manifest.test == 600
    assert [(m.name, m.dim, m.source_dim, m.dtype) for m in manifest.modalities] == [
        ("image", 3, 6, "float32"),
        ("text", 4, 4, "float32"),
    ]
    assert manifest.settings["parts"] == 4
    assert manifest.settings["input"] == [str(made)]
    assert manifest.settings["pca"] == ["image=3"]
    assert manifest.statistics["item_graph_recall"] == 1
    assert 0 < manifest.statistics["pca_kept_image"] < 1
    assert manifest.statistics["seconds_item_graph"] >= 0
    for name, digest in manifest.inputs.items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest
    assert sorted(manifest.inputs) == ["interactions.parquet", "items.parquet"]
    assert [path.name for path in output.parent.iterdir()] == ["made"]  # no temporary folder is left


def test_the_folder_is_verified_and_described(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "prepared"
    prepare(monkeypatch, made, output)
    assert run(monkeypatch, "verify", output) == 0
    assert "whole" in capsys.readouterr().out
    assert run(monkeypatch, "stats", output, "--picture", tmp_path / "degrees.png") == 0
    assert (tmp_path / "degrees.png").read_bytes().startswith(b"\x89PNG")
    (output / "parts" / "part-00001" / "users.arrow").write_bytes(b"")
    capsys.readouterr()
    assert run(monkeypatch, "verify", output) == 2
    assert "users.arrow" in capsys.readouterr().err


def prepare(monkeypatch: pytest.MonkeyPatch, source: Path, output: Path, *options: Any) -> Manifest:
    assert run(monkeypatch, "build", "--input", source, "--parts", 2, "--output", output, *options) == 0
    return read_manifest(output)


def data(manifest: Manifest) -> list[dict[str, str]]:
    """Digests of what was written."""
    return [part.digests for part in manifest.parts]


def test_equal_commands_give_equal_folders(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data(prepare(monkeypatch, made, tmp_path / "a", "--seed", 1, *EDGES_IGNORED))
    assert data(prepare(monkeypatch, made, tmp_path / "b", "--seed", 1, *EDGES_IGNORED)) == first
    assert data(prepare(monkeypatch, made, tmp_path / "c", "--seed", 2, *EDGES_IGNORED)) != first


def test_options_reach_the_folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prepare(monkeypatch, made, tmp_path / "plain")
    assert plain.name == "made"
    assert plain.split == "random"
    options = ["--name", "other", "--kcore", 8, "--split", "cold-items", "--method", "random", "--features", "text"]
    other = prepare(monkeypatch, made, tmp_path / "other", *options)
    assert (other.name, other.split) == ("other", "cold_items")
    assert [modality.name for modality in other.modalities] == ["text"]
    assert other.counts["kcore_dropped"] > 0
    assert other.items == plain.items - other.counts["kcore_items_dropped"]
    weights = ["--item-graph-weight", "image=1", "--item-graph-weight", "text=0"]
    for changed in (["--item-graph-k", "3"], weights):
        assert data(prepare(monkeypatch, made, tmp_path / "p", *changed, "--overwrite")) != data(plain)
    assert data(prepare(monkeypatch, made, tmp_path / "q", "--cooccurrence-weight", 0.5)) != data(plain)
    noisy = prepare(monkeypatch, made, tmp_path / "r", "--noise", 0.5)
    assert noisy.counts["feature_rows_permuted"] == plain.items // 2
    for was, now in zip(data(plain), data(noisy), strict=True):
        assert {name for name in was if now[name] != was[name]} == {
            "features-image.npy",
            "features-text.npy",
            "item_graph.npz",
        }
    assert 0 <= noisy.statistics["reliability"] <= plain.statistics["reliability"] <= 1


def test_several_files_after_input(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pq.read_table(made / "interactions.parquet")
    pq.write_table(rows.slice(0, 300), tmp_path / "1.parquet")
    pq.write_table(rows.slice(300), tmp_path / "2.parquet")
    whole = prepare(monkeypatch, made, tmp_path / "a", *EDGES_IGNORED)
    files = [tmp_path / "1.parquet", tmp_path / "2.parquet", made / "items.parquet"]
    output = tmp_path / "b"
    assert run(monkeypatch, "build", "--input", *files, "--parts", 2, "--output", output, *EDGES_IGNORED) == 0
    assert data(read_manifest(output)) == data(whole)


def refused(capsys: pytest.CaptureFixture[str], exit_code: int, code: str) -> None:
    """Asserts that a command ended with one line, an error of this code."""
    error = capsys.readouterr().err
    assert exit_code == 2
    assert error.startswith(f"error[{code}]: ")
    assert error.count("\n") == 1


def test_what_lies_at_output_is_safe(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "prepared"
    output.mkdir()  # an empty folder is in nobody's way
    before = prepare(monkeypatch, made, output)
    again = ["build", "--input", made, "--parts", 3, "--output", output]
    capsys.readouterr()
    refused(capsys, run(monkeypatch, *again), "output.exists")
    assert read_manifest(output) == before

    broken = tmp_path / "broken"
    broken.mkdir()
    for path in made.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    np.save(broken / "audio_feat.npy", np.repeat([[np.nan, 1]], 40, axis=0))
    code = run(monkeypatch, "build", "--input", broken, "--parts", 3, "--output", output, "--overwrite")
    refused(capsys, code, "features.value")
    assert read_manifest(output) == before

    assert run(monkeypatch, *again, "--overwrite") == 0
    assert read_manifest(output).num_parts == 3
    capsys.readouterr()
    for place in (made, made / "items.parquet"):
        code = run(monkeypatch, "build", "--input", made, "--parts", 2, "--output", place, "--overwrite")
        refused(capsys, code, "output.not-prepared")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "made", "prepared"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--parts", 41], "parts.too-many"),
        (["--parts", 2, "--kcore", 99], "option.kcore"),
        (["--parts", 2, "--split", "column"], "column.missing"),
        (["--parts", 2, "--user-column", "who"], "column.missing"),
        (["--parts", 2, "--item-graph-weight", "image=1"], "option.item-graph-weight"),
        (["--parts", 2, "--features", "audio=none.npy"], "file.missing"),
        (["--parts", 2, "--cooccurrence-weight", "inf"], "option.value"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[Any],
    code: str,
) -> None:
    capsys.readouterr()
    refused(capsys, run(monkeypatch, "build", "--input", made, "--output", tmp_path / "out", *options), code)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_was_cut_off_goes_on(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off at every stage in turn: no output yet, finished stages are not done again, the result is the same."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    arguments = ["build", "--input", made, "--parts", 2, "--features", "image", "--features", "text"]
    assert run(monkeypatch, *arguments, "--output", whole) == 0

    def crash(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("out of luck")

    stages = [  # where it is cut off, and what an earlier try has done by then
        ("partition.steps.load", []),
        ("partition.build.assign_parts", []),
        ("partition.build.build_item_graph", ["data set"]),
        ("partition.folder.write._write_item_graph", ["data set", "parts"]),
        ("partition.folder.write._manifest", ["data set", "parts", "item graph"]),
    ]
    for place, kept in stages:
        with monkeypatch.context() as patch:
            patch.setattr(place, crash)
            patch.setattr(sys, "argv", ["partition", *map(str, arguments), "--output", str(out)])
            with pytest.raises(RuntimeError, match="out of luck"):
                command.main()
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0] for line in lines if line.endswith("from an earlier run")] == kept
        assert sorted(path.name for path in tmp_path.iterdir()) == [".out.work", "made", "whole"]
    assert run(monkeypatch, *arguments, "--output", out) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out", "whole"]
    manifests = [read_manifest(folder) for folder in (whole, out)]
    assert manifests[0].parts == manifests[1].parts
    assert set(manifests[0].statistics) == set(manifests[1].statistics)


def test_work_of_another_command_or_of_changed_files_is_not_used(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(key: str, inputs: list[Path]) -> bool:
        """Whether a stage was there already."""
        found = []
        with (
            contextlib.suppress(RuntimeError),
            work_folder(tmp_path / "out", {"key": key}, list(map(str, inputs))) as work,
        ):
            found.append(work.has("stage"))
            work.result("stage", lambda path: path.write_text("done"))
            raise RuntimeError("out of luck")
        return found[0]

    assert [cut_off(key, [made]) for key in ("a", "a", "b", "b")] == [False, True, False, True]
    (made / "items.parquet").touch()
    assert not cut_off("b", [made])
    assert cut_off("b", [made])
    with (
        work_folder(tmp_path / "out", {"key": "b"}, [str(made)]),
        pytest.raises(InputError) as caught,
        work_folder(tmp_path / "out", {"key": "b"}, [str(made)]),
    ):
        pass
    assert caught.value.code == "file.locked"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_changed_feature_files_outside_of_the_input_are_read_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of `--features` is as much input as the folder of `--input`."""
    features, out = tmp_path / "features.npy", tmp_path / "out"
    arguments = ["build", "--input", made, "--parts", 2, "--features", f"image={features}", "--output", out]
    items = pq.read_metadata(made / "items.parquet").num_rows
    np.save(features, np.full((items, 3), 1, np.float32))

    def crash(*_: Any) -> None:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr("partition.folder.write._manifest", crash)
        patch.setattr(sys, "argv", ["partition", *map(str, arguments)])
        with pytest.raises(RuntimeError, match="out of luck"):
            command.main()
    np.save(features, np.full((items, 3), 22, np.float32))
    assert run(monkeypatch, *arguments) == 0
    for part in range(2):
        assert (np.load(part_dir(out, part) / "features-image.npy") == 22).all()


def test_synthetic_data_is_not_replaced_unasked(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (made / "items.parquet").read_bytes()
    capsys.readouterr()
    small = ["synthetic", "--output", made, "--users", 10, "--items", 10, "--interactions", 20, "--clusters", 2]
    refused(capsys, run(monkeypatch, *small), "output.exists")
    assert (made / "items.parquet").read_bytes() == before
    assert run(monkeypatch, *small, "--overwrite") == 0
    assert pq.read_metadata(made / "items.parquet").num_rows == 10


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    options = ["--input", "none", "--parts", "2", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "partition", "build", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error[file.missing]: none: no such file or folder\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ([], None),
        (["build"], BuildOptions),
        (["extract"], Request),
        (["synthetic"], SyntheticOptions),
        (["verify"], None),
        (["stats"], None),
    ],
)
def test_help_lists_the_typed_options(
    name: list[str],
    options: type[Options] | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *name, "--help") == 0
    printed = capsys.readouterr().out
    assert "Usage: " in printed
    listed = set(re.findall(r"--[a-z-]+[a-z]", printed))
    for field in options.model_fields if options else ():
        assert f"--{field.replace('_', '-')}" in listed


def test_help_answers_without_the_heavy_imports() -> None:
    check = "import sys, partition.cli; print([m for m in ('dgl', 'torch', 'faiss', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_baby_with_its_catalogue_ids(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "build", "--input", shared_data / "baby", "--parts", 4, "--output", tmp_path / "baby") == 0
    manifest = json.loads((tmp_path / "baby" / "manifest.json").read_text())
    sizes = [manifest[key] for key in ("users", "items", "train", "validation", "test")]
    assert sizes == [19_445, 7_050, 118_551, 20_559, 21_682]
    assert manifest["item_id_type"] == "string"
    assert [modality["name"] for modality in manifest["modalities"]] == ["image", "text"]


def test_what_a_killed_command_left_is_cleared_away_or_put_back(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (".out.12.tmp", ".out.13.old", ".out.x.tmp", ".other.12.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    for _ in range(2):
        with work_folder(out, {}, [str(made)]):
            left = sorted(path.name for path in tmp_path.iterdir() if path != made)
            assert left == [".other.12.tmp", ".out.lock", ".out.work", ".out.x.tmp", "out"]
            assert (out / "file").read_text() == ".out.13.old"
        (tmp_path / ".out.14.old").mkdir()
