"""Several threads write what one writes, to the bit."""

from __future__ import annotations

import threading
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import threadpoolctl

from partition import threads
from partition.build import build
from partition.folder.manifest import Manifest, read_manifest
from partition.item_graph.knn import nearest
from partition.options import BuildOptions, CutMethod
from partition.stages import Stages
from tests.faults.preparing import write_tables
from tests.support.small import small_dataset


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = small_dataset(users=300, items=200, degree=15, widths=(96, 32), spread=1 / 2)
    return write_tables(tmp_path_factory.mktemp("threads") / "tables", dataset)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (CutMethod.STREAM, {"pca": ["image=8"], "noise": 0.3}),
        (CutMethod.METIS, {"cooccurrence_weight": 0.4, "spectral": 4}),
        (CutMethod.RANDOM, {"approximate_above": 100}),
    ],
)
def test_a_preparation_is_the_same_on_any_number_of_threads(
    tables: Path, tmp_path: Path, method: CutMethod, more: dict[str, object]
) -> None:
    def prepared(count: int | None) -> Manifest:
        options = {"input": [str(tables)], "output": tmp_path / str(count), "parts": 5, "threads": count, **more}
        return read_manifest(build(BuildOptions(method=method, **options), Stages(quiet=True)))  # type: ignore[arg-type]

    one, *others = (prepared(count) for count in (1, 2, 3, None))
    for other in others:
        assert other.parts == one.parts
        assert other.digests == one.digests
        assert other.inputs == one.inputs
        assert other.statistics["reliability"] == one.statistics["reliability"]


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("width", [64, 1000])
def test_neighbours_are_the_same_on_any_number_of_threads(approximate: bool, width: int) -> None:
    """A BLAS divides a product of this size among threads, and its last bits depend on how."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((20, width))
    values = (centre[rng.integers(0, 20, 5000)] + rng.standard_normal((5000, width)) / 2).astype(np.float32)

    def found(count: int) -> np.ndarray:
        with threads.limited(count):
            return nearest(values, 10, approximate=approximate, block=4096, seed=0, name="image", threads=count)[0]

    one = found(1)
    np.testing.assert_array_equal(found(2), one)
    np.testing.assert_array_equal(found(3), one)


def test_libraries_follow_the_number_of_threads_and_go_back() -> None:
    def numbers() -> tuple[int, ...]:
        blas = [info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
        return pa.cpu_count(), pa.io_thread_count(), faiss.omp_get_max_threads(), *blas

    before = numbers()
    with threads.limited(3):
        assert set(numbers()) == {3}
        with threads.one_for_blas():
            assert set(numbers()[3:]) == {1}
    assert numbers() == before
    with threads.limited(None):
        assert numbers() == before


def test_each_keeps_the_order_and_raises_the_first_failure() -> None:
    together = threading.Barrier(3, timeout=60)

    def work(number: int) -> int:
        together.wait()  # passes when three run at the same time
        if number in (1, 4):
            raise ValueError(str(number))
        return number * number

    assert threads.each(lambda number: number * number, range(9), 3) == [number * number for number in range(9)]
    with pytest.raises(ValueError, match="1"):
        threads.each(work, range(3), 3)


def test_memory_limits_how_many_work_at_once() -> None:
    assert threads.at_once(4, 1) == 4
    assert threads.at_once(4, 1 << 60) == 1
    assert threads.at_once(4, 0) == 4


def test_the_number_of_threads_is_that_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 5})
    assert threads.count(None) == 3
    assert threads.count(2) == 2
