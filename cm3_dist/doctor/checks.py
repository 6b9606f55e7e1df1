"""All checks in order; a check is skipped if one that it needs has failed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cm3_dist.doctor.finding import Finding
from cm3_dist.doctor.probe_runner import probe
from cm3_dist.doctor.versions import check_versions, installed

SHM_LEAST = 1 << 30  # bytes of /dev/shm; with less, NCCL fails between the GPUs of a machine
DISK_LEAST = 1 << 30  # bytes
DRIVER = Path("/proc/driver/nvidia/version")


def check_machine(device: str, ranks: int | None) -> Iterator[Finding]:
    """Yields each finding as soon as it is known; `ranks` by default one per GPU, or two on the CPU."""
    versions = check_versions()
    yield from versions
    yield _machine()
    if any(finding.state == "FAIL" for finding in versions):
        return
    with tempfile.TemporaryDirectory(prefix="cm3-doctor-") as work:
        folder = Path(work)
        seen = probe("gpu", folder, device)
        gpus = int(found[0]) if (found := re.findall(r"^(\d+) GPU", seen.message)) else 0
        gpu = judge_gpu(seen, gpus, device)
        yield gpu
        if gpu.state == "FAIL":
            return
        device = "cuda" if gpus and device != "cpu" else "cpu"
        ranks = ranks or (gpus if device == "cuda" else 2)
        if device == "cuda" and gpus > 1 and (finding := _shared_memory()):
            yield finding
        prepared = probe("partition", folder, device, parts=max(2, ranks))
        yield prepared
        if prepared.state == "ok":
            yield probe("neighbours", folder, device)
        yield probe("collective", folder, device, ranks=ranks)
        if prepared.state == "ok":
            yield probe("lookup", folder, device, ranks=ranks)


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(".").free
    message = f"{cores} cores, {memory:.0f} GiB of memory, {free / 2**30:.0f} GiB free in this folder"
    if free < DISK_LEAST:
        return Finding("machine", "note", message, "checkpoints need room: run.dir=/path/with/space")
    return Finding("machine", "ok", message)


def judge_gpu(seen: Finding, gpus: int, device: str) -> Finding:
    """Whether the GPUs that torch sees fit the installed packages and a run on `device`."""
    if seen.state == "FAIL":
        return seen
    cpu_build, driver = installed("fbgemm-gpu-cpu") is not None, _driver()
    if device == "cpu":
        return Finding("gpu", "ok", f"not used; present: {seen.message}")
    if gpus and cpu_build:
        fix = "make cuda, or train with machine.device=cpu"
        return Finding("gpu", "FAIL", f"{seen.message}; but FBGEMM is the CPU build", fix)
    if gpus:
        return seen
    if driver:
        fix = "a newer NVIDIA driver, or train with machine.device=cpu"
        return Finding("gpu", "FAIL", f"driver {driver} is installed, but {seen.message}", fix)
    if device == "cuda":
        return Finding("gpu", "FAIL", "no NVIDIA driver on this machine", "machine.device=cpu, or install a driver")
    if not cpu_build:
        return Finding("gpu", "FAIL", "none, but FBGEMM is the CUDA build", "make setup EXTRA=cpu")
    return Finding("gpu", "ok", "none; runs use the CPU")


def _driver() -> str:
    """Version of the NVIDIA kernel driver; empty without one."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text())
    except OSError:
        return ""
    return found[0] if found else "of unknown version"


def _shared_memory() -> Finding | None:
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return None
    if size >= SHM_LEAST:
        return None
    message = f"/dev/shm has {size / 2**20:.0f} MiB; NCCL needs more between several GPUs"
    return Finding("memory", "note", message, "start the container with --shm-size=8g or --ipc=host")
