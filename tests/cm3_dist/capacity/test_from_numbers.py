from __future__ import annotations

from pathlib import Path

import pytest

from cm3_dist.capacity.from_folder import drawn_steps, scenario_from_folder
from cm3_dist.capacity.from_numbers import ITEM_LAW, Expectation, power_law
from cm3_dist.capacity.hardware import Hardware
from tests.support.small import prepare_small, small_dataset, small_settings


@pytest.mark.parametrize("mode", ["exact", "sampled"])
def test_expected_sizes_are_those_of_a_random_graph(tmp_path: Path, mode: str) -> None:
    """Parts and neighbours at random, which is what the expectation assumes."""
    prepared = prepare_small(tmp_path, dataset=small_dataset(4000, 1500, degree=8, spread=10))
    settings = small_settings(prepared, tmp_path, propagation={"mode": mode, "fanouts": [3]})
    scenario = scenario_from_folder(settings, prepared, Hardware.of(4, "cpu", 100, {}), None)
    (steps,) = drawn_steps(scenario, 1)
    load, step = Expectation(scenario).load(), Expectation(scenario).step()
    for name in ("user_from_item", "item_from_user"):
        real, expected = getattr(scenario.loads[0], name), getattr(load, name)
        assert expected.edges == pytest.approx(real.edges, rel=0.1)
        assert expected.halo.received == pytest.approx(real.halo.received, rel=0.1)
        for real, expected in zip(getattr(steps[0], name), getattr(step, name), strict=True):
            assert expected.rows == pytest.approx(real.rows, rel=0.15)
            assert expected.halo.received == pytest.approx(real.halo.received, rel=0.15)
    for name in ("users", "items", "requested", "input_users", "input_items"):
        assert getattr(step, name) == pytest.approx(getattr(steps[0], name), rel=0.2), name


def test_power_laws_have_the_given_number_of_edges() -> None:
    degrees = power_law(10_000, 200_000, ITEM_LAW)
    assert degrees.nodes.sum() == 10_000
    assert degrees.edges == pytest.approx(200_000)
    assert degrees.distinct(1) == pytest.approx(1, rel=0.01)
    assert degrees.distinct(1e9) == pytest.approx(10_000)
    assert degrees.distinct(1e9, share=0.25) == pytest.approx(2500)
