from __future__ import annotations

from pathlib import Path

import pytest

from cm3_dist.distributed.traffic import Traffic, gathered, summed, to_others
from tests.support.observe import observed_traffic
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_settings


def test_what_a_collective_moves() -> None:
    assert to_others([3, 5, 2], 1, 8) == 40
    assert gathered(100, 4) == 300
    assert summed(100, 4) == 150
    assert summed(8, 1) == gathered(8, 1) == 0


def test_bytes_are_counted_by_kind() -> None:
    traffic = Traffic()
    traffic.add("ids", 3 << 20)
    traffic.add("ids", 1 << 20)
    traffic.add("loss rows", 0)
    assert traffic.scalars() == {"traffic/ids_mib": 4.0}
    assert traffic.take() == {}


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_byte_that_leaves_a_rank_is_counted(tmp_path: Path, world_size: int) -> None:
    prepared = prepare_small(tmp_path)
    settings = [
        small_settings(prepared, tmp_path / "run", propagation={"mode": "exact"}),
        small_settings(prepared, tmp_path / "run", propagation={"mode": "exact"}, negatives="uniform"),
        small_settings(prepared, tmp_path / "run", propagation={"mode": "sampled", "fanouts": [3]}),
    ]
    for exact, uniform, sampled in run_ranks(observed_traffic, world_size, settings, 2):
        for counted in exact + uniform + sampled:
            assert counted.pop("on the wire") == sum(counted.values())
        kinds = {"ids", "planning sums", "user-item rows", "item-graph rows", "positive rows", "loss rows"}
        assert all(kinds <= counted.keys() for counted in (*exact[:-1], *sampled[:-1]))
        assert exact[-1].keys() == {"user-item rows", "item-graph rows", "ranked items", "evaluation sums"}
