"""Sampled users: exactly the requested number, and the same users on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.shard import load_shard
from cm3_dist.ranking.user_sample import sample_users
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_dataset, small_settings

COUNTS = (1, 37, 10_000)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small(tmp_path_factory.mktemp("sample"), dataset=small_dataset(users=400))


def _samples(settings: Settings) -> list[dict[int, list[int]]]:
    """Per seed and count: global user row -> what is held out for it, of this rank."""
    found = []
    with distributed(settings.machine) as runtime:
        shard = load_shard(settings.data.path, runtime.rank, runtime.world_size)
        held_out = shard.held_out["validation"]
        for seed in (1, 2):
            for count in COUNTS:
                kept = sample_users(held_out, shard.first_user, count, seed, runtime)
                ends = kept.relevant.indptr
                found.append(
                    {
                        int(user) + shard.first_user: kept.relevant.values[ends[n] : ends[n + 1]].tolist()
                        for n, user in enumerate(kept.users)
                    }
                )
    return found


def _together(ranks: list[Any]) -> list[dict[int, list[int]]]:
    return [{user: items for own in parts for user, items in own.items()} for parts in zip(*ranks, strict=True)]


def test_the_sample_is_exact_and_the_same_on_any_number_of_ranks(prepared: Path, tmp_path: Path) -> None:
    settings = small_settings(prepared, tmp_path / "run")
    alone = _together([_samples(settings)])
    everyone = alone[2]
    assert [len(sample) for sample in alone] == [1, 37, len(everyone)] * 2
    assert len(everyone) > 100
    assert set(alone[0]) < set(alone[1]) < set(everyone)  # a smaller sample is part of a larger one
    assert set(alone[1]) != set(alone[4])  # another seed
    assert all(sample[user] == everyone[user] for sample in alone for user in sample)
    for world_size in (2, 4):
        assert _together(run_ranks(_samples, world_size, settings)) == alone
