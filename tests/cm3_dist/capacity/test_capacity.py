"""The command: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cm3_dist.capacity.__main__ import app
from cm3_dist.capacity.from_numbers import scenario_from_numbers
from cm3_dist.capacity.hardware import Hardware
from cm3_dist.capacity.prediction import predict_expected
from cm3_dist.config.settings import Settings
from partition.errors import InputError
from tests.support.paths import ROOT
from tests.support.small import prepare_small

NUMBERS = ["--users", "1M", "--items", "200k", "--interactions", "20M", "--modalities", "image:128:float16"]


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


def test_what_does_not_fit_is_reported_with_what_would_make_it_fit(tmp_path: Path) -> None:
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
    hardware = Hardware.of(8, "cuda", 1000, {"memory": 80})
    sizes = [10_000_000, 1_000_000, 500_000_000]
    scenario = scenario_from_numbers(Settings(), sizes, "image:128:float16", hardware, None, 10)
    prediction = predict_expected(scenario)
    places = {item.name: item.place for item in prediction.memory}
    assert places["tables"] == places["propagation"] == "device"
    assert places["graph: parts"] == places["plans ahead"] == "host"
    assert prediction.device > prediction.checkpoint / 8
    assert not prediction.short()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--users", "10"], "capacity.options"),
        (["--data", "nowhere", "--users", "10"], "capacity.options"),
        ([*NUMBERS, "--device", "tpu"], "capacity.device"),
        (["--users", "many", *NUMBERS[2:]], "capacity.number"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], code: str) -> None:
    result = capacity(*arguments)
    assert isinstance(result.exception, InputError)
    assert result.exception.code == code


def test_data_and_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    more_ranks_than_parts = "--data", prepare_small(tmp_path), "--ranks", "3"
    for arguments in (["--data", "nowhere"], [*NUMBERS, "train.batchsize=3"], more_ranks_than_parts):
        assert isinstance(capacity(*arguments).exception, InputError)


EXAMPLES = re.findall(
    r"^python -m cm3_dist.capacity (--users .*--device cuda .*)$",
    (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_the_page_has_its_examples() -> None:
    assert len(EXAMPLES) == 3


# The dry run visits the pairs of a large batch block by block, which takes up to half a minute.
@pytest.mark.parametrize(
    "number", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_the_examples_of_the_page_fit(number: int) -> None:
    result = capacity(*shlex.split(EXAMPLES[number]))
    assert result.exit_code == 0, result.output
