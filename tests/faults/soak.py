"""A long training whose memory and open files are watched from outside: neither may grow."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from cm3_dist.config.run_files import EVALUATIONS, STEPS
from cm3_dist.errors import INTERRUPTED
from tests.faults import forked
from tests.support.launch import lines
from tests.support.small import prepare_small

RANKS, PAUSE = 2, 2.0  # seconds between two looks
WARM = 0.2  # of the time: caches fill, the allocator finds its level
WINDOWS, FLAT = 8, 0.02
# Everything that a run does, again and again: neighbours drawn ahead, evaluations, saves in the background.
SETTINGS = [
    *("model.dim=8", "train.batch_size=60", "train.epochs=1000000", "train.patience=1000000", "evaluate.ks=[20]"),
    *("propagation.mode=sampled", "propagation.fanouts=[4,3,2]", "propagation.item_fanout=2", "machine.prefetch=1"),
    *("run.save_steps=20", "run.save_in_background=true", "machine.device=cpu", "machine.threads=1"),
]


@dataclass
class Rank:
    """What one rank's process took, look by look."""

    resident: list[float] = field(default_factory=list)  # MiB
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self, process: psutil.Process) -> None:
        """Adds one."""
        with process.oneshot():
            self.resident.append(process.memory_info().rss / 2**20)
            self.files.append(process.num_fds())
            self.threads.append(process.num_threads())

    def summary(self) -> dict[str, Any]:
        """After the warm-up: means of windows in MiB, how far they are apart, files and threads at begin and end."""
        first = int(WARM * len(self.resident))
        windows = [float(np.mean(each)) for each in np.array_split(np.array(self.resident[first:]), WINDOWS)]
        third = max(1, (len(self.files) - first) // 3)
        ends = {
            name: [max(values[first : first + third]), max(values[-third:])]
            for name, values in (("files", self.files), ("threads", self.threads))
        }
        apart = (max(windows) - min(windows)) / min(windows)
        return {"mib": [round(value, 1) for value in windows], "apart": round(apart, 4), **ends}


def soak(folder: Path, minutes: float) -> dict[str, Any]:
    """Trains for so long on 2 ranks and stops it by SIGTERM: what it came to; `wrong` has what was not as promised."""
    arguments = [f"data.path={prepare_small(folder)}", f"run.dir={folder / 'run'}", *SETTINGS]
    processes = forked.train(arguments, RANKS, folder / "output")
    ranks = [Rank() for _ in processes]
    end = time.monotonic() + minutes * 60
    bar = tqdm(total=round(minutes * 60), unit="s", disable=None, file=sys.stderr)
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        time.sleep(PAUSE)
        bar.update(int(PAUSE))
        for rank, process in zip(ranks, processes, strict=True):
            if process.poll() is None:
                rank.look(psutil.Process(process.pid))
    bar.close()
    for process in processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
    forked.wait(processes, after_first=60)
    found = [rank.summary() for rank in ranks]
    wrong = [process.said()[-1000:] for process in processes if process.code != INTERRUPTED]
    for number, one in enumerate(found):
        if one["apart"] > FLAT:
            wrong.append(f"rank {number}: memory is not flat: {one['mib']} MiB")
        wrong += [
            f"rank {number}: more {name}: {one[name]}" for name in ("files", "threads") if one[name][1] > one[name][0]
        ]
    counted = {name: lines(folder / "run" / name) for name in (STEPS, EVALUATIONS)}
    return {
        "minutes": minutes,
        "ranks": found,
        "steps": counted[STEPS],
        "evaluations": counted[EVALUATIONS],
        "wrong": wrong,
    }
