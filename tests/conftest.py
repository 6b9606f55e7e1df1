"""What every test starts from: DGL's backend, one thread a process, and the shared data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.paths import SHARED_DATA

# Before anything imports dgl or torch; the ranks that tests start inherit both.
os.environ.setdefault("DGLBACKEND", "pytorch")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Before anything imports triton, which reads it then: without a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


# Files whose tests take longest begin first: a worker takes a file at a time, and none should be left alone at the end.
LONGEST = ["test_slurm", "test_ranks", "test_run", "test_loop", "test_stop_signal", "test_lost_ranks"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))  # stable: the rest stays as it was


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; skips the test where there is none."""
    folder = SHARED_DATA
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a small data set of 4 parts; not to be changed."""
    from tests.support.small import finish_small

    return finish_small(tmp_path_factory.mktemp("finished"))
