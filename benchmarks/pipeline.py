"""What happens around the computing: sampling ahead of it, batches, start-up."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.against_plain import run_epoch, settings_for, trainer_for
from benchmarks.timing import Result

SAMPLED = ("propagation.mode=sampled", "propagation.fanouts=[4,2,1]", "propagation.item_fanout=4")


def prefetch(prepared: Path, threads: int) -> Result:
    """A sampled step with prefetch, over the longer of sampling and computing, each alone with its own core."""
    computing_threads = max(1, threads - 1)
    with trainer_for(prepared, computing_threads, *SAMPLED, "train.batch_size=512") as (trainer, _):
        steps = min(trainer.batches.steps, 60)
        run_epoch(trainer, 0)
        ratios, parts = [], []
        for number in range(1, 4):
            begin = time.perf_counter()
            plans = list(trainer.planner.plans(number, 0, steps))
            sampling = time.perf_counter() - begin
            begin = time.perf_counter()
            for plan in plans:
                trainer.step(plan)
            computing = time.perf_counter() - begin
            begin = time.perf_counter()
            for plan in trainer.planner.epoch(number + 10, 0, steps):
                trainer.step(plan)
            both = time.perf_counter() - begin
            ratios.append(both / max(sampling, computing))
            parts.append((both / steps * 1e3, sampling / steps * 1e3, computing / steps * 1e3))
    together, alone, computed = np.median(parts, axis=0)
    detail = f"{together:.1f} ms a step; sampling alone {alone:.1f}, computing alone {computed:.1f}"
    return Result("prefetch", float(np.median(ratios)), 1.15, detail, at_most=True)


def batches(prepared: Path, threads: int) -> Result:
    """Share of a step, in per cent, that drawing uniform negatives and putting the batch together takes."""
    with trainer_for(prepared, threads, "negatives=uniform") as (trainer, _):
        run_epoch(trainer, 0)
        step = run_epoch(trainer, 1) / trainer.batches.steps
        begin = time.perf_counter()
        for _ in trainer.batches.epoch(2):
            pass
        drawn = (time.perf_counter() - begin) / trainer.batches.steps
    return Result("batch assembly, %", 100 * drawn / step, 2, f"{drawn * 1e3:.2f} of {step * 1e3:.0f} ms", at_most=True)


def start_up(prepared: Path, threads: int) -> Result:
    """Seconds from `torchrun` with 2 ranks to the end of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = settings_for(prepared, 1)
        config = Path(folder) / "settings.json"  # JSON is YAML
        config.write_text(settings.model_dump_json())
        command = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node=2", "-m", "cm3_dist.train"]
        own = ["--config", str(config), f"run.dir={run}", "train.max_steps=1", "evaluate.every=1"]
        begin = time.time()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *own], check=True, capture_output=True, env=environment)
        steps = run / "steps.jsonl"
        taken = steps.stat().st_mtime - begin
    return Result("start-up, s", taken, 12, "2 ranks, prepared folder, to the first line of steps.jsonl", at_most=True)
