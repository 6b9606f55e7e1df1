"""Interactions lie in files and are handled in blocks: the size of a block has no bearing on what is prepared."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from partition import columns_on_disk as blocks
from partition.build import build
from partition.folder.manifest import Manifest, read_manifest
from partition.options import BuildOptions
from partition.stages import Stages
from partition.synthetic.options import SyntheticOptions, Width
from partition.synthetic.planted import synthesise


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partition.columns_on_disk.BLOCK", 37)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in random order, a third of them twice, with other times."""
    folder = tmp_path_factory.mktemp("made") / "made"
    options = SyntheticOptions(
        output=folder, users=60, items=40, interactions=600, clusters=4, modalities={"image": Width(6)}
    )
    log, _ = synthesise(options)
    rng, rows = np.random.default_rng(0), pq.read_table(log)
    order = rng.permutation(np.concatenate([np.arange(600), rng.integers(0, 600, 200)]))
    times = pa.array(rng.random(len(order)))
    pq.write_table(rows.take(pa.array(order)).set_column(2, "timestamp", times), log)
    return folder


def prepared(source: Path, output: Path, options: dict[str, object]) -> Manifest:
    build(BuildOptions(input=[str(source)], output=output, parts=3, **options), Stages(quiet=True))  # type: ignore[arg-type]
    return read_manifest(output)


@pytest.mark.parametrize(
    "options",
    [
        {"split": "leave-last-out", "method": "stream"},
        {"split": "random", "kcore": 5, "method": "random", "spectral": 3},
        {"split": "cold-items", "method": "metis", "cooccurrence_weight": 0.3},
    ],
)
def test_the_size_of_a_block_changes_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    wanted = prepared(made, tmp_path / "whole", options)
    small_blocks(monkeypatch)
    found = prepared(made, tmp_path / "blocks", options)
    assert found.parts == wanted.parts
    assert found.counts == wanted.counts
    assert found.statistics["reliability"] == wanted.statistics["reliability"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks", "whole"]


def test_room_is_set_aside_before_a_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that writes to a mapped file on a full disk is killed by SIGBUS."""
    values = blocks.npy_file(tmp_path / "matrix.npy", np.float32, (300, 5))
    assert (tmp_path / "matrix.npy").stat().st_blocks * 512 >= values.nbytes
    values[:] = 7
    values.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "matrix.npy"), np.full((300, 5), 7, np.float32))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as error:
        blocks.npy_file(tmp_path / "more.npy", np.float32, (300, 5))
    assert error.value.filename == str(tmp_path / "more.npy")
    with pytest.raises(OSError, match="No space left") as error:
        blocks.column(10, np.int64, tmp_path)
    assert error.value.filename == str(tmp_path)


def test_nodes_are_cut_into_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4)
    degree = np.array([0, 3, 0, 9, 1, 1, 0, 2, 0])
    assert [(rows.start, rows.stop) for rows in blocks.slices_of_nodes(degree)] == [(0, 12), (12, 16)]
    assert list(blocks.slices_of_nodes(np.zeros(3, np.int64))) == []


def test_sorted_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 7)
    rng = np.random.default_rng(0)
    node, other = rng.integers(0, 12, 100), np.arange(100)
    out = np.empty(100, np.int64)
    indptr = blocks.by_node(node, other, out, blocks.counts(node, 14))
    np.testing.assert_array_equal(out, np.argsort(node, kind="stable"))
    np.testing.assert_array_equal(np.diff(indptr), np.bincount(node, minlength=14))
