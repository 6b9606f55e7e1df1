"""What every test starts from: environment, fuzzing profiles, the shared data, and the summary of what was skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.paths import SHARED_DATA
from tests.support.shared import shared_folder

# Before anything imports dgl or torch; the ranks that tests start inherit both.
os.environ.setdefault("DGLBACKEND", "pytorch")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Before anything imports triton, which reads it then: without a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# `make test` draws the same examples every time; `make test-all` others, by a seed that it prints.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("fixed")

# Files with the longest tests start first: a worker takes one file at a time, and none should be left alone at the end.
LONGEST = ["test_slurm", "test_trainer", "test_ranks", "test_run", "test_loop", "test_resume", "test_stop_signal"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))  # stable: the rest keeps its order


def skip_summary(reasons: list[str]) -> str:
    """One line; a reason `KIND: DETAIL` counts as its KIND."""
    kinds = Counter(reason.removeprefix("Skipped: ").partition(":")[0] for reason in reasons)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return f"{len(reasons)} skipped: {counts}" if reasons else "none skipped"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Below everything that pytest prints: how many tests were skipped, and why."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):  # the latter: a worker of xdist
        return
    skipped = reporter.stats.get("skipped", [])
    reporter.write_line(skip_summary([report.longrepr[2] for report in skipped]))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; skips the test if there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: {SHARED_DATA} does not exist")
    return SHARED_DATA


@pytest.fixture(scope="session")
def prepared_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data set in 4 parts, made once for all tests; read-only."""
    from tests.support.small import prepare_small

    return shared_folder(tmp_path_factory, "prepared", prepare_small) / "prepared"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the small data set in 4 parts, made once for all tests; read-only."""
    from tests.support.small import finish_small

    return shared_folder(tmp_path_factory, "finished", finish_small) / "run"
