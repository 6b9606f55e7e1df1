"""Parts are balanced, repeatable, complete, and METIS cuts few interactions."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from partition.cut import metis
from partition.cut.assign import assign_parts
from partition.errors import InputError
from partition.options import CutMethod
from tests.support.full_disk import small_disk
from tests.support.paths import ROOT
from tests.support.quoted import assert_quoted

BABY = ROOT.parent / "shared" / "data" / "baby" / "baby.inter"


def clustered_graph(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four blocks of 60 users and 40 items each, a tenth of the interactions between blocks."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 240, 4000)
    block = np.where(rng.random(4000) < 0.9, user % 4, rng.integers(0, 4, 4000))
    return tuple(np.unique(np.stack([user, rng.integers(0, 40, 4000) * 4 + block]), axis=1))


def test_metis_cuts_little_balances_and_repeats(capfd: pytest.CaptureFixture[str]) -> None:
    user, item = clustered_graph()
    first = assign_parts(user, item, 250, 165, 4, CutMethod.METIS)
    for _ in range(3):
        again = assign_parts(user, item, 250, 165, 4, CutMethod.METIS)
        np.testing.assert_array_equal(first.user_part, again.user_part)
        np.testing.assert_array_equal(first.item_part, again.item_part)
    assert np.mean(first.user_part[user] == first.item_part[item]) > 0.85
    assert np.bincount(first.user_part).max() <= 1.06 * 250 / 4
    assert np.bincount(first.item_part).max() <= 1.06 * 165 / 4
    assert first.user_part.dtype == first.item_part.dtype == np.int32
    print("still there")
    assert capfd.readouterr() == ("still there\n", "")  # METIS and DGL are not heard


def test_metis_repeats_in_another_process_with_other_memory() -> None:
    program = (
        "import numpy as np; from tests.partition.cut.test_assign import clustered_graph; "
        "from partition.cut.assign import assign_parts; from partition.options import CutMethod; import hashlib; "
        "found = assign_parts(*clustered_graph(), 250, 165, 4, CutMethod.METIS); "
        "print(hashlib.sha256(found.user_part.tobytes() + found.item_part.tobytes()).hexdigest())"
    )
    here = assign_parts(*clustered_graph(), 250, 165, 4, CutMethod.METIS)
    wanted = hashlib.sha256(here.user_part.tobytes() + here.item_part.tobytes()).hexdigest()
    environment = {**os.environ, "MALLOC_PERTURB_": "7", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.split() == [wanted]


def test_a_process_of_metis_that_ends_is_named_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    user, item = clustered_graph()
    wanted = assign_parts(user, item, 250, 165, 4, CutMethod.METIS)
    metis._server(os.getpid()).kill()
    metis._server(os.getpid()).wait()
    np.testing.assert_array_equal(assign_parts(user, item, 250, 165, 4, CutMethod.METIS).user_part, wanted.user_part)
    monkeypatch.setattr(np, "save", lambda path, rows, save=np.save: "user" in str(path) and save(path, rows))
    with pytest.raises(InputError, match=r"METIS failed: .*item\.npy") as failed:
        assign_parts(user, item, 250, 165, 4, CutMethod.METIS)
    assert failed.value.code == "parts.metis"
    monkeypatch.undo()
    server = metis._server(os.getpid())
    monkeypatch.setattr(np, "save", lambda path, rows: os.mkfifo(path))  # it waits there for ever
    ending = threading.Timer(0.5, server.kill)
    ending.start()
    with pytest.raises(InputError) as error:
        assign_parts(user, item, 250, 165, 4, CutMethod.METIS)
    ending.join()
    assert_quoted(error.value.line)


def test_streaming_cuts_little_balances_and_repeats() -> None:
    user, item = clustered_graph()
    first, again, other = (assign_parts(user, item, 250, 165, 4, CutMethod.STREAM, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.user_part, again.user_part)
    np.testing.assert_array_equal(first.item_part, again.item_part)
    assert (first.user_part != other.user_part).any()
    assert np.mean(first.user_part[user] == first.item_part[item]) > 0.85
    assert np.bincount(first.user_part).max() <= 1.06 * 250 / 4
    assert np.bincount(first.item_part).max() <= 1.06 * 165 / 4
    assert first.user_part.dtype == first.item_part.dtype == np.int32


def test_metis_on_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    user, item = np.repeat(np.arange(2000), 4), np.arange(8000) % 1000
    with small_disk(tmp_path / "disk", (2 * 64 + 8) << 10) as disk:  # room for both columns, not for the result
        with pytest.raises(OSError, match="No space left on device") as caught:
            metis.metis_parts(user, item, 2000, 1000, 4, disk)
        assert str(caught.value.filename).startswith(str(disk))
        assert list(disk.iterdir()) == []


def test_auto_takes_metis_as_long_as_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    user, item = clustered_graph()
    for limit, method in ((len(user), CutMethod.METIS), (len(user) - 1, CutMethod.STREAM)):
        monkeypatch.setattr("partition.cut.assign.METIS_EDGES", limit)
        auto, named = (assign_parts(user, item, 250, 165, 4, name) for name in (CutMethod.AUTO, method))
        np.testing.assert_array_equal(auto.user_part, named.user_part)


@pytest.mark.parametrize(("method", "most"), [(CutMethod.METIS, 1.1), (CutMethod.STREAM, 1.1)])
def test_parts_have_equal_numbers_of_interactions(method: CutMethod, most: float) -> None:
    """Blocks of very different activity: one block a part would be the smallest cut, and the worst balance."""
    user, item = clustered_graph()
    rng = np.random.default_rng(1)
    kept = rng.random(len(user)) < np.array([1, 0.3, 0.1, 0.1])[user % 4]
    user, item = user[kept], item[kept]
    assignment = assign_parts(user, item, 240, 160, 4, method)
    for part in (assignment.user_part[user], assignment.item_part[item]):
        assert np.bincount(part).max() <= most * len(user) / 4


def test_random_parts_are_even_and_follow_the_seed() -> None:
    user, item = clustered_graph()
    one, same, other = (assign_parts(user, item, 250, 165, 4, CutMethod.RANDOM, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.user_part, same.user_part)
    assert (one.user_part != other.user_part).any()
    assert np.ptp(np.bincount(one.user_part)) <= 1
    assert np.ptp(np.bincount(one.item_part)) <= 1


@pytest.mark.parametrize("method", [CutMethod.METIS, CutMethod.STREAM])
def test_nodes_without_interactions_level_the_parts(method: CutMethod) -> None:
    user, item = clustered_graph()
    assignment = assign_parts(user, item, 400, 1000, 4, method)
    assert np.ptp(np.bincount(assignment.user_part)) <= 1
    assert np.ptp(np.bincount(assignment.item_part)) <= 1


@pytest.mark.parametrize("method", [CutMethod.METIS, CutMethod.STREAM, CutMethod.RANDOM])
def test_more_parts_than_nodes_are_refused(method: CutMethod) -> None:
    pair = np.array([0, 1]), np.array([0, 1])
    for users, items in ((3, 9), (9, 2)):
        with pytest.raises(InputError) as caught:
            assign_parts(*pair, users, items, 4, method)
        assert caught.value.code == "parts.too-many"


def test_an_empty_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    user, item = clustered_graph()
    monkeypatch.setattr(
        "partition.cut.assign.metis_parts", lambda user, item, users, items, *_: np.arange(users + items) % 3
    )
    with pytest.raises(InputError, match="--method metis left part 3 without any user") as caught:
        assign_parts(user, item, 240, 160, 4)
    assert caught.value.code == "parts.empty"
    assignment = assign_parts(user, item, 241, 161, 4)  # one idle node of each kind fills it
    assert np.bincount(assignment.user_part)[3] == np.bincount(assignment.item_part)[3] == 1


def test_as_many_parts_as_nodes() -> None:
    user, item = np.divmod(np.arange(64)[np.random.default_rng(0).random(64) < 0.4], 8)
    assignment = assign_parts(user, item, 8, 8, 8)
    assert sorted(assignment.user_part) == sorted(assignment.item_part) == list(range(8))


@pytest.mark.skipif(not BABY.is_file(), reason=f"no real data: {BABY} does not exist")
@pytest.mark.parametrize(("method", "least"), [(CutMethod.METIS, 0.57), (CutMethod.STREAM, 0.54)])
def test_baby_keeps_over_half_its_interactions_inside_parts(method: CutMethod, least: float) -> None:
    user, item, split = np.loadtxt(BABY, np.int64, skiprows=1, unpack=True)
    user, item = user[split == 0], item[split == 0]
    assignment = assign_parts(user, item, 19445, 7050, 4, method)
    assert np.mean(assignment.user_part[user] == assignment.item_part[item]) > least
    assert 4 * np.bincount(assignment.user_part).max() / 19445 < 1.05
