"""Memory: what the dry run keeps alive, the sizes on disk, and the peak of real processes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3_dist.capacity import disk
from cm3_dist.capacity.dry_run import LiveTensors, dry_final_rows, dry_step
from cm3_dist.capacity.from_folder import drawn_steps, scenario_from_folder
from cm3_dist.capacity.hardware import Hardware
from cm3_dist.capacity.memory import peak, rank_memory
from cm3_dist.capacity.scenario import Scenario
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.graph.shard import load_shard
from cm3_dist.model.dimensions import tables
from cm3_dist.model.sharding_plan import table_storage
from cm3_dist.training.trainer import Trainer
from partition.build import build
from partition.folder.manifest import read_manifest
from partition.options import BuildOptions
from partition.stages import Stages
from partition.synthetic.options import SyntheticOptions
from partition.synthetic.planted import synthesise
from tests.support.observe import observed_memory
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_dataset, small_settings

SIZES = {"small": (10_000, 5_000, 120_000), "middle": (60_000, 25_000, 700_000)}


def test_torchrec_counts_the_tables_as_they_are(tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    manifest, settings = read_manifest(prepared), small_settings(prepared, tmp_path / "run")
    shapes = tables(manifest, settings)
    assert shapes == {"user_channels": (manifest.user_rows, 24), "user_mixing": (manifest.user_rows, 4)}
    rows, state = table_storage(shapes, "rowwise_adagrad", 2, "cpu")
    assert rows == pytest.approx(manifest.user_rows / 2 * 28 * 4, rel=0.02)  # and one row in transit each way
    assert state == manifest.user_rows / 2 * 2 * 4
    assert table_storage(shapes, "sgd", 2, "cpu") == (rows, 0)
    assert table_storage(shapes, "adam", 2, "cuda")[1] == manifest.user_rows / 2 * 28 * 8
    # More ranks and rows than any machine here has: nothing is allocated.
    huge = {"user_channels": (512 * 2_000_000, 192)}
    assert table_storage(huge, "rowwise_adagrad", 512, "cuda")[0] == pytest.approx(2_000_000 * 192 * 4, rel=1e-3)


def counted(settings: list[Settings]) -> list[list[tuple[int, int]]]:
    """On one rank: bytes of tensors at the peak and operations, of the first real step and of real final rows."""
    found = []
    with distributed(settings[0].machine) as runtime:
        for setting in settings:
            trainer = Trainer(setting, runtime)
            plan = next(trainer.planner.plans(0, 0, 1))
            gc.collect()
            with LiveTensors() as step:
                trainer.step(plan)
            operator, shard = trainer.planner.inference(), trainer.shard
            users = torch.arange(shard.first_user, shard.first_user + shard.user_rows)
            items = torch.arange(shard.first_item, shard.first_item + shard.item_rows)
            with LiveTensors() as evaluation:
                trainer.model.final_rows(trainer.features, users, items, operator)
            found.append([(live.peak.total(), live.flops.total()) for live in (step, evaluation)])
    return found


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_dry_run_counts_what_a_real_one_does(tmp_path: Path, world_size: int) -> None:
    """The tolerance is for what kernels allocate (`embedding_bag` an int64 per edge, except on the CPU).

    On 2 ranks it is also for the halo: in the dry run one rank stands for all others. Counts, so the same in every run.
    """
    prepared = prepare_small(tmp_path, dataset=small_dataset(1200, 600))
    cases: list[dict[str, Any]] = [
        {"propagation": {"mode": "exact"}},
        {"propagation": {"mode": "sampled", "fanouts": [3]}, "negatives": "uniform"},
        {"propagation": {"mode": "exact", "user_item_layers": 1}, "loss": {"scope": "local"}},
    ]
    settings = [small_settings(prepared, tmp_path / "run", model={"dim": 64}, **case) for case in cases]
    seen = run_ranks(counted, world_size, settings)
    for number, setting in enumerate(settings):
        scenario = _scenario(setting, world_size)
        (steps,) = drawn_steps(scenario, 1)
        for rank, (load, step) in enumerate(zip(scenario.loads, steps, strict=True)):
            dry = dry_step(scenario, load, step), dry_final_rows(scenario, load)
            for usage, (live, flops) in zip(dry, seen[rank][number], strict=True):
                assert sum(usage.live.values()) == pytest.approx(live, rel=0.03 if world_size == 1 else 0.1), (
                    cases[number],
                    usage.live,
                )
                assert sum(usage.flops.values()) == pytest.approx(flops, rel=0.01), (cases[number], usage.flops)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "sampled"])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("size", list(SIZES))
def test_the_memory_of_processes_is_predicted(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, size: str, world_size: int, mode: str
) -> None:
    """The allocator and thread stacks included, hence the wide bounds; checkpoints are exact to file headers."""
    prepared = _prepared(tmp_path_factory.getbasetemp() / f"capacity-{size}", *SIZES[size])
    machine = {"device": "cpu", "threads": 1}
    settings = Settings.model_validate(
        {"data": {"path": prepared}, "run": {"dir": tmp_path}, "propagation": {"mode": mode}, "machine": machine}
    )
    seen = run_ranks(observed_memory, world_size, settings, 5)
    scenario = _scenario(settings, world_size)
    (steps,) = drawn_steps(scenario, 1)
    table_bytes = table_storage(tables(scenario.manifest, settings), settings.tables.name, world_size, "cpu")
    for found, load, step in zip(seen, scenario.loads, steps, strict=True):
        usage = dry_step(scenario, load, step), dry_final_rows(scenario, load)
        predicted = peak(rank_memory(scenario, load, step, usage, table_bytes), "host") / 2**20
        assert predicted == pytest.approx(max(found.values()), rel=0.25), (found, predicted)
    saved = sum(file.stat().st_size for file in (tmp_path / "checkpoints").glob("step-*/*.distcp"))
    assert disk.checkpoint_bytes(scenario, table_bytes) == pytest.approx(saved, rel=0.02)


def _scenario(settings: Settings, ranks: int) -> Scenario:
    return scenario_from_folder(settings, settings.data.path, Hardware.of(ranks, "cpu", 100, {}), None)


def _prepared(folder: Path, users: int, items: int, interactions: int) -> Path:
    """Prepared once per session."""
    if not (folder / "prepared").exists():
        options = SyntheticOptions(
            output=folder / "raw", users=users, items=items, interactions=interactions, clusters=100, overwrite=True
        )
        synthesise(options)
        build(BuildOptions(input=[str(folder / "raw")], output=folder / "prepared", parts=4), Stages(quiet=True))
    return folder / "prepared"


def test_what_weights_take_is_counted(tmp_path: Path) -> None:
    """On disk and in memory: the arrays of a weighted graph and nothing else."""
    totals = []
    for name, weighted in (("plain", False), ("weighted", True)):
        settings = small_settings(prepare_small(tmp_path / name, weighted=weighted), tmp_path / "run")
        scenario = _scenario(settings, 2)
        (steps,) = drawn_steps(scenario, 1)
        load, step = scenario.loads[1], steps[1]
        usage = dry_step(scenario, load, step), dry_final_rows(scenario, load)
        entries = {(e.name, e.phase): e.bytes for e in rank_memory(scenario, load, step, usage, (0.0, 0.0))}
        totals.append(entries)
        shard = load_shard(settings.data.path, 1, 2)
        held = [array for graph in shard.graphs for array in (graph.weight, graph.item_weighted_degree)]
        assert entries.get(("graph: weights", "always"), 0) == sum(0 if a is None else a.nbytes for a in held)
    added = totals[1].pop(("graph: weights", "always"))
    assert totals[1].pop(("loading the parts", "load")) == totals[0].pop(("loading the parts", "load")) + added
    assert totals[0] == totals[1]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_prepared_folder_has_the_size_that_its_counts_give(weighted: bool, tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path, dataset=small_dataset(3000, 1000), weighted=weighted)
    scenario = _scenario(small_settings(prepared, tmp_path), 4)
    expected = disk.prepared_bytes(scenario, list(scenario.loads))
    real = disk.folder_bytes(prepared, scenario.manifest)
    for kind in ("graph", "item graph", "features", "held-out"):
        assert expected[kind] == pytest.approx(real[kind], rel=0.06), kind
