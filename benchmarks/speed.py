"""Speed as ratios measured in one run, against the plain implementation of `benchmarks.reference`::

    python -m benchmarks.speed --data ../shared/data/baby --json speed.json
    python -m benchmarks.speed --only epoch --only "full evaluation"

The data is prepared under prepared/ if it is not there yet. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import against_plain, pipeline
from benchmarks.timing import Result, prepare_if_missing, report, run_command
from partition.errors import InputError

BENCHMARKS: dict[str, Callable[[Path, int], Result]] = {
    "epoch": against_plain.epoch,
    "calibrated uniformity": against_plain.uniformity_speed,
    "uniformity memory": against_plain.uniformity_memory,
    "propagation layer": against_plain.propagation,
    "full evaluation": against_plain.evaluation,
    "prefetch": pipeline.prefetch,
    "batch assembly": pipeline.batches,
    "start-up": pipeline.start_up,
    "time to quality": against_plain.time_to_quality,
}


def main(
    data: Annotated[Path, typer.Option(help="raw data set")] = Path("../shared/data/baby"),
    prepared: Annotated[Path, typer.Option(help="where it is, or will be, prepared")] = Path("prepared/baby"),
    only: Annotated[list[str] | None, typer.Option(help=f"one of: {', '.join(BENCHMARKS)}; may be repeated")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="write the table there as JSON too")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of both sides")] = 2,
) -> None:
    """Measure the program against the plain implementation."""
    unknown = sorted(set(only or []) - set(BENCHMARKS))
    if unknown:
        raise InputError(f"--only {unknown[0]!r}: not a benchmark; one of {', '.join(BENCHMARKS)}")
    prepare_if_missing(data, prepared)
    results = []
    for name in only or BENCHMARKS:
        # A process each: one benchmark's memory and threads are not the next one's.
        print(f"{name} ...", file=sys.stderr, flush=True)
        results.append(_apart(name, prepared, threads))
    report(results, "speed", output)


def _apart(name: str, prepared: Path, threads: int) -> Result:
    program = (
        "import json, sys\nfrom pathlib import Path\nfrom benchmarks.speed import BENCHMARKS\n"
        "result = BENCHMARKS[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))\n"
        "content = result.plain()\ncontent.pop('met')\nprint(json.dumps(content))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, name, str(prepared), str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    run_command(main)
