"""A preparation on a disk that is too small ends in one line, and goes on when there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition.build import build
from partition.folder.manifest import read_manifest
from partition.options import BuildOptions, CutMethod
from partition.stages import Stages
from tests.support.full_disk import mount, small_disk
from tests.support.paths import ROOT

USERS, ITEMS, WIDTH, DEGREE = 3000, 2000, 64, 10  # columns of 120 kB, features of 512 kB, parts of 1.4 MB together
KIB = 1 << 10


def tables(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(USERS), DEGREE)
    item = (user * DEGREE + np.tile(np.arange(DEGREE), USERS)) % ITEMS
    pq.write_table(pa.table({"user": user, "item": item}), folder / "log.parquet")
    image = pa.array(list(rng.standard_normal((ITEMS, WIDTH), np.float32)))
    pq.write_table(pa.table({"item": np.arange(ITEMS), "image": image}), folder / "items.parquet")
    return folder


@pytest.mark.parametrize(
    ("size", "named"),
    [
        (64 * KIB, ".prepared.work/dataset"),  # interactions
        (800 * KIB, ".prepared.work/"),
        (2400 * KIB, ".prepared.work/part-0000"),
    ],
    ids=["interactions", "features", "parts"],
)
def test_a_small_disk_is_one_line(tmp_path: Path, size: int, named: str) -> None:
    """A process that wrote to a mapped file without room for it would end with SIGBUS, which says nothing."""
    source = tables(tmp_path / "tables")
    with small_disk(tmp_path / "disk", size) as disk:
        output = disk / "prepared"
        options = BuildOptions(input=[str(source)], output=output, parts=2, method=CutMethod.RANDOM)
        arguments = ["--input", source, "--output", output, "--parts", 2, "--method", "random"]
        command = [sys.executable, "-m", "partition", "build", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        # By the engine's columns or by the matrix of features: the data set is one result.
        assert done.stderr.startswith(f"error[file.unwritable]: {disk / named}")
        assert done.stderr.endswith(": No space left on device\n")
        assert done.stderr.count("\n") == 1
        assert not output.exists()
        assert mount(disk, 64 << 20, "remount")
        build(options, Stages(quiet=True))
        assert [path.name for path in disk.iterdir()] == ["prepared"]
        whole = options.model_copy(update={"output": tmp_path / "whole"})
        assert read_manifest(output).digest() == read_manifest(build(whole, Stages(quiet=True))).digest()
