"""The doctor on this machine, and on machines with something broken: each failure is provoked, and names its fix."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cm3_dist.doctor import checks, probes, versions
from cm3_dist.doctor.finding import Finding
from cm3_dist.doctor.probe_runner import fix, probe
from cm3_dist.model.local_table import LocalTable
from tests.support.paths import ROOT
from tests.support.small import prepare_small


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cm3_dist.doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.slow
def test_this_machine_is_well() -> None:
    done = doctor("--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    states = [line.split()[:2] for line in done.stdout.splitlines()[:-1]]
    checks = ["python", "packages", "lockstep", "machine", "gpu", "partition", "neighbours", "collective", "lookup"]
    assert states == [["ok", check] for check in checks]
    assert "2 rank(s), gloo" in done.stdout
    assert "all is well" in done.stdout


def test_a_python_without_the_packages() -> None:
    """Only the standard library is needed to say so: -S and -I hide everything that is installed."""
    root = ROOT
    program = (
        f"import sys, runpy; sys.path.insert(0, {str(root)!r}); runpy.run_module('cm3_dist.doctor', {{}}, '__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cm3-dist is not installed" in done.stdout
    assert "source .venv/bin/activate" in done.stdout
    assert "torch missing" in done.stdout


def fake(folder: Path, name: str, version: str) -> None:
    """A package that is installed as far as its metadata go, before the real one on the path."""
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("name", "version", "said", "remedy"),
    [
        ("torchrec", "1.6.0", "not built for each other", "make distclean && make setup"),
        ("dgl", "2.1.0", "dgl is 2.1.0, required is dgl==1.1.3", "make setup"),
        ("fbgemm-gpu", "1.8.0", "two builds of FBGEMM", "make distclean && make setup"),
    ],
)
def test_versions_that_do_not_go_together(
    name: str, version: str, said: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if versions.installed(name) == version:
        pytest.skip(f"no other version to find: {name} {version} is installed")
    fake(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    wrong = [finding for finding in versions.check_versions() if finding.state == "FAIL"]
    assert any(said in finding.message and finding.fix == remedy for finding in wrong), wrong


def test_nothing_is_tried_with_wrong_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "torchrec", "1.6.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert [finding.check for finding in checks.check_machine("cpu", 1)] == [
        "python",
        "packages",
        "lockstep",
        "machine",
    ]


def stub(folder: Path, name: str, content: str) -> str:
    """A module that is imported in place of the real one; returns the PYTHONPATH for it."""
    (folder / f"{name}.py").write_text(content)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.mark.parametrize(
    ("name", "module", "content", "said", "remedy"),
    [
        ("partition", "dgl", "import os; os.kill(os.getpid(), 11)", "SIGSEGV", "make distclean && make setup"),
        (
            "partition",
            "dgl",
            "raise OSError('_C.so: undefined symbol: _ZN3c10')",
            "undefined symbol",
            "not built for this torch",
        ),
        ("gpu", "torch", "raise ImportError('libcuda.so.1: cannot open')", "libcuda", "make setup EXTRA=cpu"),
    ],
)
def test_a_library_that_breaks(
    name: str, module: str, content: str, said: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", stub(tmp_path, module, content))
    finding = probe(name, tmp_path, "cpu", parts=2)
    assert finding.state == "FAIL"
    assert said in finding.message
    assert remedy in finding.fix
    assert "\n" not in finding.message


@pytest.mark.slow
def test_ranks_that_cannot_reach_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    finding = probe("collective", tmp_path, "cpu", ranks=2)
    assert finding.state == "FAIL"
    assert "nowhere0" in finding.message
    assert "GLOO_SOCKET_IFNAME=lo" in finding.fix


def test_a_crash_says_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", stub(tmp_path, "torch", f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})"))
    assert probe("gpu", tmp_path, "cpu").message == "ended by SIGILL"


SEEN, NONE = Finding("gpu", "ok", "1 GPU(s): a card"), Finding("gpu", "ok", "torch 2.13.0 sees no GPU")


@pytest.mark.parametrize(
    ("seen", "gpus", "device", "cpu_build", "driver", "said", "remedy"),
    [
        (SEEN, 1, "auto", True, "570.1", "FBGEMM is the CPU build", "make cuda"),
        (NONE, 0, "auto", False, "470.2", "driver 470.2 is installed", "a newer NVIDIA driver"),
        (NONE, 0, "cuda", True, "", "no NVIDIA driver", "machine.device=cpu"),
        (NONE, 0, "auto", False, "", "FBGEMM is the CUDA build", "make setup EXTRA=cpu"),
        (SEEN, 1, "auto", False, "570.1", "a card", None),
        (SEEN, 1, "cpu", True, "570.1", "not used", None),
        (NONE, 0, "auto", True, "", "runs use the CPU", None),
    ],
)
def test_what_a_gpu_needs(
    seen: Finding,
    gpus: int,
    device: str,
    cpu_build: bool,
    driver: str,
    said: str,
    remedy: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "installed", lambda name: "1.8.0" if cpu_build else None)
    file = tmp_path / "version"
    if driver:
        file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue\n")
    monkeypatch.setattr(checks, "DRIVER", file)
    finding = checks.judge_gpu(seen, gpus, device)
    assert said in finding.message
    assert finding.state == ("ok" if remedy is None else "FAIL")
    assert finding.fix.startswith(remedy or "")


def test_the_lookup_is_one_of_torchrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_small(tmp_path)
    monkeypatch.setattr(LocalTable, "some", None)  # how training steps read and update a table
    monkeypatch.setattr(LocalTable, "all", None)
    assert "rows x 24 of 1 rank(s), looked up and updated" in probes.lookup(tmp_path, "cpu", 1)


def test_full_disk_has_a_remedy() -> None:
    assert "TMPDIR" in fix("partition", "OSError: [Errno 28] No space left on device")


@pytest.mark.parametrize(
    ("version", "requirement", "fits"),
    [
        ("2.13.0+cpu", "torch==2.13.0", True),
        ("2.13", "torch==2.13.0", True),
        ("2.13.1", "torch==2.13.0", False),
        ("18.0.1", "pyarrow>=18", True),
        ("9.9", "pyarrow>=18", False),
        ("1.10", "scipy>=1.11", False),
        ("12.0.0", "ibis-framework[duckdb]>=10", True),
        ("2.0.1", "duckdb<2,>=1.4", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, requirement: str, fits: bool) -> None:
    assert versions.satisfies(version, requirement) is fits


def test_the_pinned_triple_is_in_step() -> None:
    torch, torchrec = versions.installed("torch"), versions.installed("torchrec")
    assert torch is not None
    assert torchrec is not None
    assert torchrec.startswith(versions.LOCKSTEP[".".join(torch.split(".")[:2])])
