"""Pictures of a sweep: where each run lies along the axis, and the file that is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.collect import collect
from jobs.curves import by_variant, curves
from tests.support.study import METRIC, call, make_run


def test_runs_are_placed_by_variant_and_setting(tmp_path: Path) -> None:
    for name, path, recall in (("0", "p/baby", 0.1), ("0.25", "p/baby_noise0.25", 0.08), ("1", "p/baby_noise1", 0.05)):
        for seed in (1, 2):
            for variant in ("plain", "calibrated"):
                folder = tmp_path / f"noise/{variant},noise={name},seed={seed}"
                make_run(folder, recall + seed / 1000, f"data.path={path}", f"train.seed={seed}")
    found = by_variant(collect([tmp_path / "noise"])[0], "data.path", METRIC)
    assert found.keys() == {"plain", "calibrated"}
    assert found["plain"].keys() == {0.0, 0.25, 1.0}
    assert found["plain"][0.25] == pytest.approx([0.081, 0.082])


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_of_two_data_sets(tmp_path: Path, suffix: str, begins: bytes) -> None:
    for data in ("baby", "tiktok"):
        make_run(tmp_path / f"gamma/{data}/gamma=auto,seed=1", 0.2, "loss.gamma=auto", data=data)
        make_run(tmp_path / f"gamma/{data}/gamma=0.5,seed=1", 0.1, "loss.gamma=0.5", data=data)
    runs = collect([tmp_path / "gamma/tiktok"])[0]
    assert by_variant(runs, "loss.gamma", METRIC) == {"": {"auto": [0.2], 0.5: [0.1]}}
    picture = tmp_path / f"pictures/gamma.{suffix}"
    assert call(curves, tmp_path / "gamma", "--x", "loss.gamma", "--picture", picture) == 0
    assert picture.read_bytes().startswith(begins)
    assert [path.name for path in picture.parent.iterdir()] == [picture.name]


def test_a_metric_that_no_run_has_is_refused(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--x", "loss.gamma", "--picture", tmp_path / "x.png", "--metric", "recall@7"]
    assert call(curves, study, *arguments) == 2
    assert capsys.readouterr().err.startswith("error[curves.missing]: ")
