from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cm3_dist.capacity import disk
from cm3_dist.capacity.__main__ import app
from cm3_dist.capacity.from_folder import drawn_steps, rank_loads
from cm3_dist.capacity.from_numbers import ITEM_LAW, Degrees, Expectation
from cm3_dist.capacity.hardware import GIB, machine
from cm3_dist.capacity.memory import peak, rank_memory
from cm3_dist.capacity.scenario import Plan
from cm3_dist.config.settings import Settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.model.dimensions import tables
from cm3_dist.model.sharding_plan import table_storage
from partition.build import build
from partition.errors import InputError
from partition.folder.manifest import read_manifest
from partition.options import BuildOptions
from partition.stages import Stages
from partition.synthetic.options import SyntheticOptions
from partition.synthetic.planted import synthesise
from tests.support.observe import observed_memory
from tests.support.ranks import run_ranks
from tests.support.small import prepare_small, small_dataset, small_settings

SIZES = {"small": (10_000, 5_000, 120_000), "middle": (60_000, 25_000, 700_000)}
NUMBERS = ["--users", "1M", "--items", "200k", "--interactions", "20M", "--modalities", "image:128:float16"]


def test_torchrec_reckons_with_the_tables_as_they_are(tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    manifest, settings = read_manifest(prepared), small_settings(prepared, tmp_path / "run")
    shapes = tables(manifest, settings)
    assert shapes == {"user_channels": (manifest.user_rows, 24), "user_mixing": (manifest.user_rows, 4)}
    rows, state = table_storage(shapes, "rowwise_adagrad", 2, "cpu")
    assert rows == pytest.approx(manifest.user_rows / 2 * 28 * 4, rel=0.02)  # and a row on its way in and out
    assert state == manifest.user_rows / 2 * 2 * 4
    assert table_storage(shapes, "sgd", 2, "cpu") == (rows, 0)
    assert table_storage(shapes, "adam", 2, "cuda")[1] == manifest.user_rows / 2 * 28 * 8
    # As many ranks and rows as no machine here has: nothing is allocated.
    huge = {"user_channels": (512 * 2_000_000, 192)}
    assert table_storage(huge, "rowwise_adagrad", 512, "cuda")[0] == pytest.approx(2_000_000 * 192 * 4, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "world_size", "mode"),
    [
        ("small", 1, "exact"),
        *(
            pytest.param(size, world_size, mode, marks=pytest.mark.slow)
            for size in SIZES
            for world_size in (1, 2, 4)
            for mode in ("exact", "sampled")
        ),
    ],
)
def test_memory_is_predicted_within_15_percent(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, size: str, world_size: int, mode: str
) -> None:
    prepared = _prepared(tmp_path_factory.getbasetemp() / f"capacity-{size}", *SIZES[size])
    settings = Settings.model_validate(
        {
            "data": {"path": prepared},
            "run": {"dir": tmp_path},
            "propagation": {"mode": mode},
            "machine": {"device": "cpu", "threads": 1},
        }
    )
    seen = run_ranks(observed_memory, world_size, settings, 5)
    manifest = read_manifest(prepared)
    loads = rank_loads(prepared, manifest, world_size)
    with distributed(settings.machine) as runtime:
        (steps,) = drawn_steps(settings, mode, loads, runtime, 1)
    table_bytes = table_storage(tables(manifest, settings), settings.tables.name, world_size, "cpu")
    for found, load, step in zip(seen, loads, steps, strict=True):
        items = rank_memory(manifest, settings, mode, "cpu", world_size, load, step, table_bytes)
        predicted = peak(items, "host") / 2**20
        assert predicted == pytest.approx(max(found.values()), rel=0.15), (found, predicted)
    saved = sum(file.stat().st_size for file in (tmp_path / "checkpoints").glob("step-*/*.distcp"))
    assert disk.checkpoint_bytes(manifest, settings, table_bytes, world_size) == pytest.approx(saved, rel=0.02)


def _prepared(folder: Path, users: int, items: int, interactions: int) -> Path:
    """Prepared once a session."""
    if not (folder / "prepared").exists():
        synthesise(
            SyntheticOptions(
                output=folder / "raw", users=users, items=items, interactions=interactions, clusters=100, overwrite=True
            )
        )
        build(BuildOptions(input=[folder / "raw"], output=folder / "prepared", parts=4), Stages(quiet=True))
    return folder / "prepared"


@pytest.mark.parametrize("mode", ["exact", "sampled"])
def test_expected_sizes_are_those_of_a_random_graph(tmp_path: Path, mode: str) -> None:
    """Parts and neighbours at random: what the expectation assumes."""
    prepared = prepare_small(tmp_path, dataset=small_dataset(4000, 1500, degree=8, spread=10))
    manifest = read_manifest(prepared)
    settings = small_settings(prepared, tmp_path, propagation={"mode": mode, "fanouts": [3]})
    loads = rank_loads(prepared, manifest, 4)
    with distributed(settings.machine) as runtime:
        (steps,) = drawn_steps(settings, mode, loads, runtime, 1)
    degrees = [Degrees.of(prepared, manifest, file) for file in ("users.arrow", "items.arrow")]
    inside = sum(part.inner_edges for part in manifest.parts) / manifest.train
    similar = sum(load.similar.edges for load in loads) / manifest.items
    expectation = Expectation(manifest, settings, mode, 4, degrees[0], degrees[1], inside, similar)
    load, step = expectation.load(), expectation.step()
    for name in ("user_from_item", "item_from_user"):
        real, expected = getattr(loads[0], name), getattr(load, name)
        assert expected.edges == pytest.approx(real.edges, rel=0.1)
        assert expected.halo.received == pytest.approx(real.halo.received, rel=0.1)
        for real, expected in zip(getattr(steps[0], name), getattr(step, name), strict=True):
            assert expected.rows == pytest.approx(real.rows, rel=0.15)
            assert expected.halo.received == pytest.approx(real.halo.received, rel=0.15)
    for name in ("users", "items", "asked", "input_users", "input_items"):
        assert getattr(step, name) == pytest.approx(getattr(steps[0], name), rel=0.2), name


def test_power_laws_have_the_edges_that_are_asked_for() -> None:
    degrees = Degrees.power_law(10_000, 200_000, ITEM_LAW)
    assert degrees.nodes.sum() == 10_000
    assert degrees.edges == pytest.approx(200_000)
    assert degrees.distinct(1) == pytest.approx(1, rel=0.01)
    assert degrees.distinct(1e9) == pytest.approx(10_000)
    assert degrees.distinct(1e9, share=0.25) == pytest.approx(2500)


def test_a_prepared_folder_has_the_size_that_its_counts_say(tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path, dataset=small_dataset(3000, 1000))
    manifest = read_manifest(prepared)
    expected = disk.prepared_bytes(manifest, rank_loads(prepared, manifest, 4))
    real = disk.folder_bytes(prepared, manifest)
    for kind in ("graph", "item graph", "features", "held-out"):
        assert expected[kind] == pytest.approx(real[kind], rel=0.06), kind


def capacity(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_folder_is_planned_for_its_ranks(tmp_path: Path) -> None:
    prepared = prepare_small(tmp_path)
    result = capacity("--data", prepared, "--ranks", "2", "--json", tmp_path / "plan.json", "train.batch_size=64")
    assert result.exit_code == 0, result.output
    assert "fits" in result.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["memory"]["host_peak"] > 300 * 2**20
    assert plan["bytes_per_step"]["user-item rows"] > 0
    assert plan["disk"]["prepared"]["features"] == sum(f.stat().st_size for f in prepared.rglob("features-*"))
    assert plan["settings"]["train"]["batch_size"] == 64
    assert plan["does_not_fit"] == plan["advice"] == []
    assert np.isfinite(list(plan["seconds"]["step_by_kind"].values())).all()


def test_what_does_not_fit_is_said_with_what_would_make_it_fit(tmp_path: Path) -> None:
    large = [*NUMBERS, "--ranks", "2", "propagation.mode=exact"]
    result = capacity(*large, "--memory", "3", "--json", tmp_path / "plan.json")
    assert result.exit_code == 1, result.output
    assert "does not fit: a rank's memory" in result.output
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert any(line.endswith("h)") and "fits" in line for line in plan["advice"])
    # The advice is true: the number of ranks that it names fits.
    ranks = next(line.split()[0] for line in plan["advice"] if " ranks" in line)
    assert capacity(*NUMBERS, "--ranks", ranks, "--memory", "3", "propagation.mode=exact").exit_code == 0


def test_a_gpu_keeps_tables_and_rows_on_the_device() -> None:
    settings, cluster = Settings(), machine(8, "cuda", 1000 * GIB, {"memory": 80})
    plan = Plan.of_numbers(settings, [10_000_000, 1_000_000, 500_000_000], "image:128:float16", cluster, None, 10)
    prediction = plan.expected()
    places = {item.name: item.place for item in prediction.memory}
    assert places["tables"] == places["propagation"] == "device"
    assert places["graph: parts"] == places["plans ahead"] == "host"
    assert prediction.device > prediction.checkpoint / 8
    assert not prediction.short()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--users", "10"], "--items is missing"),
        (["--data", "nowhere", "--users", "10"], "--users: --data has its own numbers"),
        (["--data", "nowhere"], "not a prepared folder"),
        ([*NUMBERS, "--device", "tpu"], "--device tpu"),
        (["--users", "many", *NUMBERS[2:]], "--users many: expected a number"),
        ([*NUMBERS, "train.batchsize=3"], "did you mean 'train.batch_size'"),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str) -> None:
    result = capacity(*arguments)
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_more_ranks_than_parts_are_refused(tmp_path: Path) -> None:
    result = capacity("--data", prepare_small(tmp_path), "--ranks", "3")
    assert isinstance(result.exception, InputError)
    assert "4 parts cannot be shared by 3 ranks" in str(result.exception)
