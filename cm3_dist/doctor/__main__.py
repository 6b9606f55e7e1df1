"""Checks that this machine can prepare data and train.

    python -m cm3_dist.doctor                  # versions, GPU, one partition, one collective, one lookup
    python -m cm3_dist.doctor --device cpu     # as a run with machine.device=cpu would find it
    python -m cm3_dist.doctor --ranks 4        # as `torchrun --nproc_per_node=4` would

Takes about half a minute. Ends with code 0 when nothing fails, else with 2; every failure names the command that mends it.
"""  # noqa: E501

from __future__ import annotations

import argparse
import sys

from cm3_dist.doctor.examination import examine
from cm3_dist.doctor.finding import Finding


def main() -> None:
    """Command line, by argparse: typer may be what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m cm3_dist.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="as machine.device")
    parser.add_argument("--ranks", type=_positive, help="processes to try; by default one per GPU, on the CPU two")
    options = parser.parse_args()
    failed = False
    for finding in examine(options.device, options.ranks):
        failed = failed or finding.state == "FAIL"
        _show(finding)
    print("something is wrong: see `mend`" if failed else "all is well: this machine can prepare data and train")
    sys.exit(2 if failed else 0)


def _show(finding: Finding) -> None:
    print(f"{finding.state:<5} {finding.check:<11} {finding.said}", flush=True)
    if finding.mend:
        print(f"{'':<5} {'mend':<11} {finding.mend}", flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    main()
