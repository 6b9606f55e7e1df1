"""`python -m tests.support.held_training`: cm3_dist.train, which waits after a step until the test releases it.

HOLD is `STEP:FOLDER`; FOLDER has a FIFO for each rank, which the rank reads to its end; without it, the rank goes on.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cm3_dist.distributed.entry_point import entry_point
from cm3_dist.distributed.stop_signal import StopSignal, Verdict
from cm3_dist.train import main

if __name__ == "__main__":
    step, _, folder = os.environ["HOLD"].partition(":")
    after_step = StopSignal.after_step

    def held(self: StopSignal, done: int) -> Verdict:
        if done == int(step):
            with contextlib.suppress(FileNotFoundError):
                (Path(folder) / os.environ.get("RANK", "0")).read_bytes()
        return after_step(self, done)

    StopSignal.after_step = held  # type: ignore[method-assign]
    entry_point(main)()
