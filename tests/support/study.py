"""Run folders as the trainer writes them, and the commands of jobs/ called in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cm3_dist.config.loading import load_settings
from jobs.command import command_line

METRIC = "recall@20"


def call(main: Callable[..., Any], *arguments: Any) -> int:
    """Runs a command of jobs/; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jobs", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            command_line(main)
    return int(end.value.code or 0)


def make_run(folder: Path, recall: float, *overrides: str, data: str = "baby", finished: bool = True) -> Path:
    """Writes a run folder: 20 steps of 0.75 s in 2 epochs on 2 ranks, resumed once."""
    folder.mkdir(parents=True)
    settings = load_settings(None, [*overrides, f"run.dir={folder}"])
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings.plain(), sort_keys=False))
    commands = ["--config jobs/baby.yaml 'data.path=a b' --resume auto  # on 2 rank(s)", "--resume  # on 4 rank(s)"]
    (folder / "command.txt").write_text("".join(f"/x/train.py {line}\n" for line in commands))
    steps = [
        {"step": step, "epoch": step // 10, "loss": 1.0 / (step + 1), "seconds": {"forward": 0.5, "backward": 0.25}}
        for step in range(20)
    ]
    (folder / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    evaluations = [{"step": 9, "epoch": 0, "split": "validation", METRIC: recall / 2}]
    evaluations += [{"step": 19, "epoch": 1, "split": split, METRIC: recall} for split in ("validation", "test")]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    metrics = {METRIC: recall, "ndcg@20": recall / 2, "map@20": recall / 3}
    content = {"validation": metrics, "test": metrics, "best_epoch": 1, "epochs": 2, "steps": 20, "world_size": 2}
    content |= {"parts": 4, "data": data, "split": "column", "peak_memory_mib": {"resident": [700.4, 812.6]}}
    if finished:
        (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def make_study(root: Path) -> Path:
    """Writes 8 runs on one data set (two configurations with 3 seeds, two with 1), one on another, one unfinished."""
    for seed, (full, plain) in enumerate([(0.100, 0.096), (0.104, 0.098), (0.102, 0.099)], 1):
        make_run(root / f"full,seed={seed}", full, f"train.seed={seed}", f"machine.threads={seed}")
        make_run(root / f"plain,seed={seed}", plain, f"train.seed={seed}", "loss.item_uniformity=plain")
    for t, recall in ((1.0, 0.09), (3.0, 0.095)):
        make_run(root / f"t={t},seed=1", recall, "train.seed=1", f"loss.t={t}")
    make_run(root / "other", 0.5, data="tiktok")
    make_run(root / "half", 0.5, "train.seed=9", finished=False)
    return root
