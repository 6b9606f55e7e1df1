"""Links of the documents lead somewhere: files, headings in them; every page can be reached; the quickstart runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.*?) *$", text, re.M)
    found: dict[str, int] = {}
    for heading in headings:
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
        if found[name]:
            found[f"{name}-{found[name]}"] = 0
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or not path.is_relative_to(ROOT):
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(path):
            broken.append(f"{target}: no such heading")
    assert broken == []


def test_every_page_can_be_reached() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        text = page.read_text(encoding="utf-8")
        named = [page.parent / target.partition("#")[0] for target in _LINK.findall(text)]
        named += [ROOT / name for name in re.findall(r"docs/[a-z-]+\.md", text)]  # also as plain text
        waiting += [path.resolve() for path in named if path.suffix == ".md" and path.resolve() not in reached]
        waiting = [path for path in waiting if path.is_file()]
    assert set(PAGES) - reached == set()


def test_every_picture_is_shown() -> None:
    shown = {Path(target).name for page in PAGES for target in _LINK.findall(page.read_text(encoding="utf-8"))}
    pictures = {path.name for path in (ROOT / "docs" / "images").iterdir() if path.suffix in (".png", ".svg")}
    assert pictures <= shown


def test_modules_that_the_pages_run_exist() -> None:
    named = {
        name
        for page in PAGES
        if page.name != "CHANGELOG.md"  # it names what is gone
        for name in re.findall(r"python -m ((?:cm3_dist|partition|jobs|benchmarks)(?:\.\w+)*)", page.read_text())
    }
    assert {"cm3_dist.recommend", "partition"} <= named
    for name in named:
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_options_that_the_pages_give_exist() -> None:
    """Options of every command line occur in the sources of what it starts, as typer names them."""
    wrong = []
    for page in PAGES:
        text = re.sub(r"\\\n", " ", page.read_text(encoding="utf-8"))
        for name, rest in re.findall(r"-m ((?:cm3_dist|partition|jobs)(?:\.\w+)*)([^\n`#|;]*)", text):
            path = ROOT.joinpath(*name.split("."))
            files = [path.with_suffix(".py")] if path.with_suffix(".py").exists() else sorted(path.rglob("*.py"))
            source = "".join(
                file.read_text(encoding="utf-8")
                for file in [*files, ROOT / "cm3_dist" / "config" / "command_options.py"]
            )
            for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", rest):
                if option not in source and f"    {option[2:].replace('-', '_')}:" not in source:
                    wrong.append(f"{page.name}: {name} {option}")
    assert wrong == []


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="no extra `extract`: make extract installs it")
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "quickstart.md").read_text(), re.M | re.S)
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(blocks)],
        cwd=tmp_path,
        env={**os.environ, **path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lists = pq.read_table(tmp_path / "lists.parquet")
    assert lists["user"][0].as_py().startswith("customer-")
    assert lists["item"][0].as_py().startswith("SKU-")
    assert lists.num_rows == 10 * len(lists["user"].unique()) == 10 * 900
    catalogue, log = (pq.read_table(tmp_path / f"shop/{name}.parquet").to_pylist() for name in ("items", "log"))
    bears = {row["item_id"] for row in catalogue if "toy bear" in row["title"]}
    fans = Counter(row["user_id"] for row in log if row["item_id"] in bears)
    first = {row["user"]: row["item"] for row in pq.read_table(tmp_path / "new_lists.parquet").to_pylist()}
    likely = [first[user] for user, count in fans.items() if count >= 8]
    assert likely
    assert likely.count("NEW-1") > 0.9 * len(likely)  # the new toy bear goes to those who like toy bears
