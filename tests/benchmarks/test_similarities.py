"""Cosines between a run's items, pair by pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.similarities import JOINED, cosines_of, draw, table
from cm3_dist.config.command_options import run_settings
from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.inference.trained_model import TrainedModel
from tests.support.small import finish_small


def test_cosines_of_a_run(tmp_path: Path) -> None:
    folder = finish_small(tmp_path, train={"epochs": 1})
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        run = TrainedModel(run_settings(folder, []), runtime)
        found = cosines_of(run)
        final = run.rows[1].double().numpy()
        graph = run.shard.similar
    by_kind = {(one.rows, one.pairs): one.values for one in found}
    assert {rows for rows, _ in by_kind} == {"features", "fused", "final"}
    first = np.repeat(np.arange(len(graph.indptr) - 1), np.diff(graph.indptr))
    kept = (first != graph.source) & (run.shard.item_degree[first] > 0)
    a, b = final[first[kept]], final[graph.source[kept]]
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(by_kind["final", JOINED], expected, atol=1e-5)
    # Neighbours are chosen by their features.
    assert np.median(by_kind["features", JOINED]) > np.median(by_kind["features", "random"])
    assert table(found).count("\n") == 7
    draw(found, tmp_path / "plot" / "similarities.png")
    assert (tmp_path / "plot" / "similarities.png").stat().st_size > 1_000
