"""Runs a probe in processes of its own and turns its outcome into one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from cm3_dist.doctor.finding import Finding
from cm3_dist.doctor.versions import REINSTALL

DONE, FAILED = "doctor done: ", "doctor failed: "  # prefixes of the lines that a probe prints
TIMEOUT = 180  # seconds
# Pattern of a message -> what to do about it; the first match counts.
FIXES = (
    (r"undefined symbol", f"{REINSTALL} (a library was not built for this torch)"),
    (r"lib(cuda|nvidia-ml|torch_cuda|cudart|nccl)", "make setup EXTRA=cpu (the CUDA build of FBGEMM needs a driver)"),
    (r"NCCL|nccl", "NCCL_DEBUG=INFO python -m cm3_dist.doctor, and in a container: --shm-size=8g or --ipc=host"),
    (r"No space left", "free the disk, or TMPDIR=/path/with/space python -m cm3_dist.doctor"),
    (r"ModuleNotFoundError|ImportError|OSError|AttributeError", REINSTALL),
)
DEFAULTS = {
    "collective": "GLOO_SOCKET_IFNAME=lo python -m cm3_dist.doctor (lo, or the interface that connects the machines)",
}


def probe(name: str, folder: Path, device: str, parts: int = 1, ranks: int = 0) -> Finding:
    """Runs the probe `name` on `ranks` processes under torchrun, or for 0 without torchrun."""
    launch = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"] if ranks else []
    command = [sys.executable, "-m", *launch, "cm3_dist.doctor.probes", name, str(folder), device, str(parts)]
    begin = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return Finding(name, "FAIL", f"no answer in {TIMEOUT} s", fix(name, "timeout"))
    done = _marked(ended.stdout, DONE)
    if ended.returncode == 0 and done:
        return Finding(name, "ok", f"{done}  {time.monotonic() - begin:.1f} s")
    reason = _marked(ended.stderr, FAILED) or _last_line(ended.stderr, ended.returncode)
    return Finding(name, "FAIL", reason, fix(name, reason))


def fix(name: str, message: str) -> str:
    """What to do about a message."""
    for pattern, command in FIXES:
        if re.search(pattern, message):
            return command
    return DEFAULTS.get(name, REINSTALL)


def _marked(text: str, mark: str) -> str:
    """The first line with this prefix; under torchrun several ranks print, possibly into one line."""
    lines = [line.split(mark, 1)[1] for line in text.splitlines() if mark in line]
    return lines[0].strip() if lines else ""


def _last_line(stderr: str, code: int) -> str:
    """Why a process ended that printed no line of ours."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if crashed := [line for line in lines if re.search(r"Signal \d+ \(\w+\)", line)]:
        return crashed[0][:400]
    return lines[-1][:400] if lines else f"ended with code {code}, without a message"
