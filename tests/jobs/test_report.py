"""The report: the table, the page, what it refuses, and the page in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.report import report
from tests.support.study import call

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def test_a_run_of_an_earlier_version_is_on_the_page(study: Path) -> None:
    path = study / "t=1.0,seed=1/settings.yaml"
    path.write_text(path.read_text().replace("model:\n", "model:\n  curve_centre: item\n"))
    assert call(report, study) == 0
    assert "model.curve_centre: None → item" in (study / "report.html").read_text()


def test_table_and_page(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(report, study) == 0
    assert "9 runs, 1 not finished" in capsys.readouterr().out
    rows = {Path(row["folder"]).name: row for row in pq.read_table(study / "report.parquet").to_pylist()}
    assert len(rows) == 9
    row = rows["full,seed=2"]
    assert (row["settings.train.seed"], row["test.recall@20"], row["peak_memory_mib"]) == (2, 0.104, 812.6)
    assert row["train_seconds"] == pytest.approx(15)
    page = (study / "report.html").read_text()
    text = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    for words in (
        "<h2>baby</h2>",
        "<h2>tiktok</h2>",
        "0.1020 ± 0.0020",
        "-0.0043",
        "-4.2%",
        "calibrated → plain",
        "per comparison, uncorrected",
        "813",
    ):
        assert words in text
    assert "&#39;data.path=a b&#39;" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # nothing is fetched
    assert sorted(path.name for path in study.iterdir() if path.is_file()) == ["report.html", "report.parquet"]
    assert call(report, study) == 0  # again, over the first
    (events,) = (study / "tensorboard").iterdir()
    assert "train.seed" in events.read_bytes().decode(errors="replace")  # a column of the HParams tab


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--baseline", "fall"], "report.baseline"), (["--metric", "recall@7"], "report.metric")],
)
def test_what_a_report_refuses(
    study: Path, arguments: list[str], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(report, study, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error[{code}]: {arguments[0]} {arguments[1]}: ")
    assert not list(study.glob("*.html"))


@pytest.mark.skipif(BROWSER is None, reason="no browser: chromium is not installed (apt-get install chromium)")
def test_the_page_in_a_browser(study: Path, tmp_path: Path) -> None:
    assert call(report, study) == 0
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
    """Returns the page's elements after its scripts ran, and what the console shows."""
    assert BROWSER is not None
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    words += ["--enable-logging=stderr", "--virtual-time-budget=5000", page.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
