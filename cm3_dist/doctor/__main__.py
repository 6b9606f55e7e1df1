"""Checks that this machine can prepare data and train.

    python -m cm3_dist.doctor                  # versions, GPU, one partition, one collective, one lookup
    python -m cm3_dist.doctor --device cpu     # for runs with machine.device=cpu
    python -m cm3_dist.doctor --ranks 4        # for runs under `torchrun --nproc_per_node=4`

Takes about half a minute. Exits with 0 if nothing fails, else with 2; every failure comes with the command that fixes it.
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys

from cm3_dist.doctor.checks import check_machine
from cm3_dist.doctor.finding import Finding


def main() -> None:
    """Command line; argparse, because typer may be what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m cm3_dist.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="as machine.device")
    parser.add_argument(
        "--ranks", type=_positive, help="number of processes to try; default: one per GPU, or two on the CPU"
    )
    options = parser.parse_args()
    failed = False
    for finding in check_machine(options.device, options.ranks):
        failed = failed or finding.state == "FAIL"
        _show(finding)
    print(
        "something is wrong: see the lines marked `fix`"
        if failed
        else "all is well: this machine can prepare data and train"
    )
    sys.exit(2 if failed else 0)


def _show(finding: Finding) -> None:
    print(f"{finding.state:<5} {finding.check:<11} {finding.message}", flush=True)
    if finding.fix:
        print(f"{'':<5} {'fix':<11} {finding.fix}", flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    main()
