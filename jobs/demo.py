"""The whole path on synthetic data: generate, cut into 4 parts, train on 2 ranks, evaluate.

`make demo` runs it. Each step is a command line, which is printed before it runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

DATA, PREPARED, RUN = Path("data/demo"), Path("prepared/demo"), Path("runs/demo")
CONFIG = Path(__file__).with_name("demo.yaml")
SIZES = ["--users", "3000", "--items", "1500", "--interactions", "45000", "--seed", "7"]
MODALITIES = ["--modalities", "image:64,text:32"]


def main() -> None:
    """Runs the four commands, each over the output of an earlier demo."""
    if sys.argv[1:]:  # --help, or an argument that does not exist
        print(f"Usage: python -m jobs.demo\n\n{__doc__}")
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    for folder in (DATA, RUN):
        shutil.rmtree(folder, ignore_errors=True)
    generate = ["python", "-m", "partition", "synthetic", "--output", str(DATA), *SIZES, *MODALITIES]
    prepare = ["python", "-m", "partition", "build", "--input", str(DATA), "--parts", "4", "--output", str(PREPARED)]
    check = ["python", "-m", "partition", "verify", str(PREPARED)]
    config = os.path.relpath(CONFIG)
    train = ["torchrun", "--nproc_per_node=2", "-m", "cm3_dist.train", "--config", config]
    for command in (generate, [*prepare, "--overwrite"], check, train):
        print(f"\n$ {shlex.join(command)}", flush=True)
        code = subprocess.run(_here(command), env=_environment(), check=False).returncode
        if code:
            sys.exit(code)
    if sys.prefix != sys.base_prefix and "VIRTUAL_ENV" not in os.environ:
        print(f"first:       source {os.path.relpath(sys.prefix)}/bin/activate")


def _here(command: list[str]) -> list[str]:
    """The command with this interpreter, and torchrun as a module: neither needs an active environment."""
    head = [sys.executable] if command[0] == "python" else [sys.executable, "-m", "torch.distributed.run"]
    return head + command[1:]


def _environment() -> dict[str, str]:
    """One thread per rank, set here so that torchrun does not warn about setting it."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


if __name__ == "__main__":
    main()
