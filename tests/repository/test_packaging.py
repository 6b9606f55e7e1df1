"""The pinned requirements, the wheel, and the commands that the documents name."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import cm3_dist
from tests.support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHONS = ["3.10", "3.11"]
EXTRAS = ["cpu", "cuda"]
PACKAGES = ["cm3_dist", "partition", "jobs"]
# torchrec's metadata asks for fbgemm-gpu on every machine; pyproject.toml restates its requirements without it.
RESTATED = {("torchrec", "fbgemm-gpu")}


class Pins(NamedTuple):
    """One requirements file as one Python on Linux x86-64 reads it."""

    file: str
    versions: dict[str, Version]

    def refuses(self, requirement: Requirement) -> str | None:
        """Why the pins do not satisfy a requirement, or None."""
        version = self.versions.get(canonicalize_name(requirement.name))
        if version is None:
            return f"{self.file} lacks {requirement}"
        if not requirement.specifier.contains(version, prereleases=True):
            return f"{self.file} pins {requirement.name} {version}, asked for is {requirement}"
        return None


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.5",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
        "extra": "",
    }


def applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment(python))


def read_pins(name: str, python: str) -> Pins:
    versions: dict[str, Version] = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        requirement = Requirement(line)
        if not applies(requirement, python):
            continue
        pinned = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
        key = canonicalize_name(requirement.name)
        assert pinned, f"{name}.txt: {line} is not one version"
        assert key not in versions, f"{name}.txt: {key} is pinned twice for Python {python}"
        versions[key] = Version(pinned[1])
    return Pins(f"{name}.txt for Python {python}", versions)


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


def refusals(pins: Pins, requirements: list[str], python: str) -> list[str]:
    asked = [Requirement(line) for line in requirements]
    return [why for requirement in asked if applies(requirement, python) and (why := pins.refuses(requirement))]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_pins_satisfy_pyproject(project: dict[str, Any], extra: str, python: str) -> None:
    pins = read_pins(extra, python)
    metadata = project["project"]
    asked = [*metadata["dependencies"], *metadata["optional-dependencies"][extra], *project["build-system"]["requires"]]
    assert refusals(pins, asked, python) == []


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_of_extract_go_with_either_build(project: dict[str, Any], python: str) -> None:
    extract = read_pins("extract", python)
    assert refusals(extract, project["project"]["optional-dependencies"]["extract"], python) == []
    for extra in EXTRAS:
        pins = read_pins(extra, python)
        shared = extract.versions.keys() & pins.versions.keys()
        assert {name: extract.versions[name] for name in shared} == {name: pins.versions[name] for name in shared}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("extra", "other"), [("cpu", "fbgemm-gpu"), ("cuda", "fbgemm-gpu-cpu")])
def test_one_build_of_fbgemm(extra: str, other: str, python: str) -> None:
    """Both unpack into the same folder, so a file that names both installs a broken one."""
    assert other not in read_pins(extra, python).versions


@pytest.mark.parametrize("python", PYTHONS)
def test_dev_pins_satisfy_pyproject_and_agree_with_the_rest(project: dict[str, Any], python: str) -> None:
    dev = read_pins("dev", python)
    assert refusals(dev, project["dependency-groups"]["dev"], python) == []
    for extra in EXTRAS:
        pins = read_pins(extra, python)
        shared = dev.versions.keys() & pins.versions.keys()
        assert {name: dev.versions[name] for name in shared} == {name: pins.versions[name] for name in shared}


@pytest.mark.parametrize("name", ["cpu or cuda", "extract"])
def test_pins_are_closed(name: str) -> None:
    """Every requirement of every pinned package, as installed here, is pinned too."""
    python = ".".join(map(str, sys.version_info[:2]))
    if name != "extract":
        name = "cpu" if is_installed("fbgemm-gpu-cpu") else "cuda"
    elif not is_installed("transformers"):
        pytest.skip("no extra `extract`: make extract installs it")
    pins = read_pins(name, python)
    problems = []
    for name, version in pins.versions.items():
        package = distribution(name)
        if Version(package.version) != version:
            problems.append(f"{pins.file} pins {name} {version}, installed is {package.version}")
        asked = [line for line in package.requires or [] if not restated(name, line)]
        problems += refusals(pins, asked, python)
    assert problems == []


def is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def restated(name: str, line: str) -> bool:
    return (name, canonicalize_name(Requirement(line).name)) in RESTATED


def test_what_pyproject_restates_covers_what_torchrec_asks_for(project: dict[str, Any]) -> None:
    (entry,) = project["tool"]["uv"]["dependency-metadata"]
    package = distribution(entry["name"])
    assert package.version == entry["version"]
    ours = {canonicalize_name(Requirement(line).name) for line in entry["requires-dist"]}
    theirs = [line for line in package.requires or [] if not restated(entry["name"], line)]
    assert {canonicalize_name(Requirement(line).name) for line in theirs if applies(Requirement(line), "3.11")} <= ours


def test_pythons_are_the_ones_checked_here(project: dict[str, Any]) -> None:
    supported = SpecifierSet(project["project"]["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 16) if supported.contains(f"3.{minor}")] == PYTHONS
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == PYTHONS


def test_no_file_names_where_packages_come_from() -> None:
    """Anyone's mirror does: nothing committed may choose one."""
    for path in (ROOT / "requirements").iterdir():
        assert "://" not in path.read_text(), path.name
        assert not re.search(r"(?m)^\s*-", path.read_text()), f"{path.name} holds an option"
    named = re.compile(r"index-url|find-links|pypi\.|pythonhosted\.", re.IGNORECASE)
    names = ["pyproject.toml", "setup.py", "Makefile", "CITATION.cff", ".pre-commit-config.yaml", ".ci/run"]
    for path in [*map(ROOT.joinpath, names), *ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.yml")]:
        assert not named.search(path.read_text()), path.name


def test_one_version_everywhere(project: dict[str, Any]) -> None:
    version = project["project"]["version"]
    assert cm3_dist.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_carries_every_module_and_job_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ["pyproject.toml", "setup.py", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)
    for name in [*PACKAGES, "tests"]:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {path for name in PACKAGES for path in (source / name).rglob("*.py")}
    expected |= {path for kind in ("*.yaml", "*.jinja") for path in (source / "jobs").rglob(kind)}
    assert held == {path.relative_to(source).as_posix() for path in expected}


def test_documents_name_make_targets_that_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / ".ci" / "run", ROOT / "pyproject.toml"]
    named = {target for path in documents for target in re.findall(r"(?m)(?:`|^)make ([a-z-]+)", path.read_text())}
    assert {"demo", "test"} <= named <= targets
