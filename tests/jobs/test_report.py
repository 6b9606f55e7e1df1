"""The report: what it computes, what it refuses, and the page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import ttest_rel

from cm3_dist.config.loading import load_settings
from jobs.collect import collect
from jobs.command import command_line
from jobs.compare import choose_baseline, differences, group_runs, sensitivities
from jobs.curves import by_variant, curves
from jobs.report import report
from jobs.table import table

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
METRIC = "recall@20"


def make_run(folder: Path, recall: float, *overrides: str, data: str = "baby", finished: bool = True) -> Path:
    """A run folder as the trainer writes it."""
    folder.mkdir(parents=True)
    settings = load_settings(None, [*overrides, f"run.dir={folder}"])
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.plain(), sort_keys=False))
    commands = ["--config jobs/baby.yaml 'data.path=a b' --resume auto  # on 2 rank(s)", "--resume  # on 4 rank(s)"]
    (folder / "command.txt").write_text("".join(f"/x/train.py {line}\n" for line in commands))
    steps = [
        {"step": step, "epoch": step // 10, "loss": 1.0 / (step + 1), "seconds": {"forward": 0.5, "backward": 0.25}}
        for step in range(20)
    ]
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    evaluations = [{"step": 9, "epoch": 0, "split": "validation", METRIC: recall / 2}]
    evaluations += [{"step": 19, "epoch": 1, "split": split, METRIC: recall} for split in ("validation", "test")]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    metrics = {METRIC: recall, "ndcg@20": recall / 2, "map@20": recall / 3}
    content = {"validation": metrics, "test": metrics, "best_epoch": 1, "epochs": 2, "steps": 20, "world_size": 2}
    content |= {"parts": 4, "data": data, "split": "column", "peak_memory_mib": {"resident": [700.4, 812.6]}}
    if finished:
        (folder / "metrics.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    root = tmp_path / "study"
    for seed, (full, plain) in enumerate([(0.100, 0.096), (0.104, 0.098), (0.102, 0.099)], 1):
        make_run(root / f"full,seed={seed}", full, f"train.seed={seed}", f"machine.threads={seed}")
        make_run(root / f"plain,seed={seed}", plain, f"train.seed={seed}", "loss.item_uniformity=plain")
    for t, recall in ((1.0, 0.09), (3.0, 0.095)):
        make_run(root / f"t={t},seed=1", recall, "train.seed=1", f"loss.t={t}")
    make_run(root / "other", 0.5, data="tiktok")
    make_run(root / "half", 0.5, "train.seed=9", finished=False)
    return root


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["jobs.report", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        command_line(report)
    return int(stopped.value.code or 0)


def test_seeds_are_one_configuration_and_differences_are_paired(study: Path) -> None:
    older = study / "full,seed=1/settings.yaml"  # of before there was this setting
    settings = yaml.safe_load(older.read_text())
    assert settings["model"].pop("item_ids") is False
    older.write_text(yaml.safe_dump(settings))
    runs, unfinished = collect([study, study / "other"])
    assert [path.name for path in unfinished] == ["half"]
    assert len(runs) == 9  # each once, though named twice
    groups = {group.label: group for group in group_runs([run for run in runs if run.data == "baby"])}
    assert set(groups) == {"full", "plain", "t=1.0", "t=3.0"}
    full, plain = groups["full"], groups["plain"]
    assert full.mean(METRIC) == pytest.approx(0.102)
    assert full.std(METRIC) == pytest.approx(0.002)
    assert groups["t=1.0"].std(METRIC) is None
    baseline = choose_baseline(list(groups.values()), METRIC, None)
    assert baseline is full  # one setting away from every other
    assert choose_baseline(list(groups.values()), METRIC, "plain") is plain
    rows = {row.group.label: row for row in differences(list(groups.values()), full, METRIC)}
    assert rows["plain"].difference == pytest.approx((-0.004 - 0.006 - 0.003) / 3)
    assert rows["plain"].p == pytest.approx(ttest_rel([0.096, 0.098, 0.099], [0.1, 0.104, 0.102]).pvalue)
    assert rows["plain"].changes == {"loss.item_uniformity": ("calibrated", "plain")}
    assert rows["t=1.0"].difference == pytest.approx(-0.01)  # against the same seed, not against the mean
    assert (rows["t=1.0"].seeds, rows["t=1.0"].p) == (1, None)
    ((setting, points),) = sensitivities(list(groups.values()), full).items()
    assert setting == "loss.t"
    assert [(value, group.label) for value, group in points] == [(1.0, "t=1.0"), (2.0, "full"), (3.0, "t=3.0")]


def test_table_and_page(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, study) == 0
    assert "9 runs, 1 not finished" in capsys.readouterr().out
    table = pq.read_table(study / "report.parquet").to_pylist()
    rows = {Path(row["folder"]).name: row for row in table}
    assert len(rows) == 9
    row = rows["full,seed=2"]
    assert (row["settings.train.seed"], row["test.recall@20"], row["peak_memory_mib"]) == (2, 0.104, 812.6)
    assert row["train_seconds"] == pytest.approx(15)
    assert row["command"] == "torchrun --nproc_per_node=2 -m cm3_dist.train --config jobs/baby.yaml 'data.path=a b'"
    page = (study / "report.html").read_text()
    text = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    for words in (
        "<h2>baby</h2>",
        "<h2>tiktok</h2>",
        "0.1020 ± 0.0020",
        "-0.0043",
        "-4.2%",
        "calibrated → plain",
        "813",
    ):
        assert words in text
    assert "&#39;data.path=a b&#39;" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # nothing is fetched
    assert sorted(path.name for path in study.iterdir() if path.is_file()) == ["report.html", "report.parquet"]
    assert call(monkeypatch, study) == 0  # again, over the first
    (events,) = (study / "tensorboard").iterdir()
    assert "train.seed" in events.read_bytes().decode(errors="replace")  # a column of the HParams tab


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{study}/gone"], "gone: no such folder"),
        (["{tmp}/empty"], "no run in it"),
        (["{study}/half"], "no finished run yet; 1 begun"),
        (["{study}", "--baseline", "fall"], "--baseline fall: no such configuration; there are "),
        (["{study}", "--metric", "recall@7"], "--metric recall@7: not computed"),
    ],
)
def test_what_a_report_refuses(
    study: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, *(text.format(study=study, tmp=tmp_path) for text in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not list(study.glob("*.html"))


def test_a_damaged_run_is_named(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "plain,seed=2" / "metrics.json").write_text('{"test": {')
    assert call(monkeypatch, study) == 2
    assert "plain,seed=2: not a run folder that can be read" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="no browser: chromium is not installed (apt-get install chromium)")
def test_the_page_in_a_browser(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, study) == 0
    dom, console = browse(study / "report.html", tmp_path / "profile")
    assert console == []
    # Two data sets with two plots each, and one of sensitivity; every line of a plot is a path with points.
    assert len(re.findall(r'class="js-plotly-plot"|class="[^"]*plotly-graph-div[^"]*js-plotly-plot', dom)) == 5
    assert len(re.findall(r'<path class="js-line"[^>]* d="M[^"]{8,}', dom)) >= 2 * 8 + 2 + 1
    assert dom.count("<tr") > 9
    broken = tmp_path / "broken.html"
    broken.write_text((study / "report.html").read_text().replace("</body>", "<script>gone.away()</script></body>"))
    assert "gone is not defined" in " ".join(browse(broken, tmp_path / "profile")[1])


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's elements after its scripts ran, and what they said on the console."""
    assert BROWSER is not None
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    words += ["--enable-logging=stderr", "--virtual-time-budget=5000", page.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_table_to_choose_by(study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["table", str(study), "--baseline", "full"])
    with pytest.raises(SystemExit):
        command_line(table)
    baby = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert baby[0] == "| configuration | seeds | validation | difference | p |"
    assert baby[2] == "| full | 3 | .1020 ± .0020 |  |  |"
    p = ttest_rel([0.096, 0.098, 0.099], [0.100, 0.104, 0.102]).pvalue
    assert baby[3] == f"| plain | 3 | .0977 ± .0015 | -4.2 % | {p:.3f} |"
    assert baby[4] == "| t=3.0 | 1 | .0950 | -5.0 % |  |"
    monkeypatch.setattr("sys.argv", ["table", str(study), "--metric", "ndcg@20", "--baseline", "full", "--test"])
    with pytest.raises(SystemExit):
        command_line(table)
    assert "| full | 3 | .0510 ± .0010 |  |  | .0510 ± .0010 |" in capsys.readouterr().out


def test_curves_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "noise"
    for name, path, recall in (("0", "p/baby", 0.1), ("0.25", "p/baby_noise0.25", 0.08), ("1", "p/baby_noise1", 0.05)):
        for seed in (1, 2):
            for variant in ("plain", "calibrated"):
                folder = root / f"{variant},noise={name},seed={seed}"
                make_run(folder, recall + seed / 1000, f"data.path={path}", f"train.seed={seed}")
    make_run(tmp_path / "gamma/gamma=auto,seed=1", 0.2, "loss.gamma=auto", data="tiktok")
    make_run(tmp_path / "gamma/gamma=0.5,seed=1", 0.1, "loss.gamma=0.5", data="tiktok")
    lines = by_variant(collect([root])[0], "data.path", METRIC)["baby"]
    assert lines.keys() == {"plain", "calibrated"}
    assert lines["plain"].keys() == {0.0, 0.25, 1.0}
    assert lines["plain"][0.25] == pytest.approx([0.081, 0.082])
    assert by_variant(collect([tmp_path / "gamma"])[0], "loss.gamma", METRIC)["tiktok"][""] == {
        "auto": [0.2],
        0.5: [0.1],
    }
    picture = tmp_path / "pictures/noise.png"
    arguments = ["curves", str(root), str(tmp_path / "gamma"), "--x", "loss.gamma", "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="0"):
        command_line(curves)
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", [*arguments, "--metric", "recall@7"])
    with pytest.raises(SystemExit, match="2"):
        command_line(curves)
    assert "has no setting loss.gamma or no validation recall@7" in capsys.readouterr().err
