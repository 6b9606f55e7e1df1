"""Checks that the packages are installed in versions that fit together; reads metadata and imports none of them."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires

from cm3_dist.doctor.finding import Finding

ACTIVATE = "make setup, then: source .venv/bin/activate"
REINSTALL = "make distclean && make setup"
# Minor versions that were built for each other: torch -> torchrec and fbgemm.
LOCKSTEP = {"2.11": "1.6", "2.12": "1.7", "2.13": "1.8"}
FBGEMM = ("fbgemm-gpu", "fbgemm-gpu-cpu")


def check_versions() -> list[Finding]:
    """Checks Python, the packages of pyproject.toml, and that torch, TorchRec and FBGEMM match."""
    return [_python(), _packages(), _lockstep()]


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    message = f"{platform.python_version()} in {sys.prefix}, {platform.system()} {platform.machine()}"
    if not (3, 10) <= sys.version_info[:2] < (3, 12):
        return Finding("python", "FAIL", f"{message}; DGL 1.1.3 needs Python 3.10 or 3.11", ACTIVATE)
    if platform.system() != "Linux":
        return Finding("python", "FAIL", f"{message}; FBGEMM and DGL are built for Linux", "use Linux, or a container")
    return Finding("python", "ok", message)


def _packages() -> Finding:
    try:
        required = requires("cm3-dist") or []
    except PackageNotFoundError:
        return Finding("packages", "FAIL", f"cm3-dist is not installed in {sys.executable}", ACTIVATE)
    wrong, count = [], 0
    for requirement in required:
        if "extra ==" in requirement:
            continue
        count += 1
        name, version = _name(requirement), installed(_name(requirement))
        if version is None:
            wrong.append(f"{name} is missing")
        elif not satisfies(version, requirement):
            wrong.append(f"{name} is {version}, required is {requirement}")
    if wrong:
        return Finding("packages", "FAIL", "; ".join(wrong), "make setup")
    return Finding("packages", "ok", f"all {count} that pyproject.toml requires")


def _lockstep() -> Finding:
    torch, torchrec = installed("torch"), installed("torchrec")
    fbgemm = {name: version for name in FBGEMM if (version := installed(name))}
    message = ", ".join(
        f"{name} {version or 'missing'}" for name, version in {"torch": torch, "torchrec": torchrec, **fbgemm}.items()
    )
    if not fbgemm:
        return Finding("lockstep", "FAIL", f"{message}, fbgemm missing", "make setup (NVIDIA GPU: make cuda)")
    if len(fbgemm) > 1:
        return Finding(
            "lockstep", "FAIL", f"{message}: two builds of FBGEMM are installed in the same folder", REINSTALL
        )
    if torch is None or torchrec is None:
        return Finding("lockstep", "FAIL", message, "make setup")
    wanted = LOCKSTEP.get(_minor(torch))
    if wanted is None or {_minor(torchrec), *map(_minor, fbgemm.values())} != {wanted}:
        fitting = "; ".join(f"torch {torch} with torchrec and fbgemm {other}" for torch, other in LOCKSTEP.items())
        return Finding("lockstep", "FAIL", f"{message} were not built for each other ({fitting})", REINSTALL)
    return Finding("lockstep", "ok", message)


def satisfies(version: str, requirement: str) -> bool:
    """Whether a version satisfies a requirement such as `name[extra]<2,>=1.4`; its bounds are ==, >= or <.

    `packaging` would do this, but the doctor also runs in a Python that has no packages.
    """
    bounds = requirement.split(";")[0].removeprefix(_name(requirement)).strip()
    return all(_within(version, bound) for bound in re.sub(r"^\[[^]]*\]", "", bounds).split(",") if bound)


def _within(version: str, bound: str) -> bool:
    found = re.fullmatch(r"\s*(==|>=|<)\s*([0-9.]+)\s*", bound)
    if found is None:
        raise ValueError(f"{bound!r}: not ==, >= or < and a version")
    have, want = _numbers(version), _numbers(found[2])
    width = max(len(have), len(want))
    have, want = have + [0] * (width - len(have)), want + [0] * (width - len(want))
    return {"==": have == want, ">=": have >= want, "<": have < want}[found[1]]


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return found[0] if found else requirement


def _numbers(version: str) -> list[int]:
    """2.13.0+cpu -> [2, 13, 0]."""
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]


def _minor(version: str) -> str:
    return ".".join(map(str, _numbers(version)[:2]))
