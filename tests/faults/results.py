"""What a run came to: its tables, its losses and its metrics, to be compared with those of another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from cm3_dist.checkpoint.dcp_io import CheckpointReader


@dataclass(frozen=True)
class Result:
    """A finished run."""

    tables: dict[str, Tensor]  # of the last and of the best checkpoint: tables, encoder, and their optimizers' state
    losses: list[float]
    evaluations: list[dict[str, Any]]
    metrics: dict[str, Any]


def read(run: Path) -> Result:
    """The result in a run folder."""
    tables: dict[str, Tensor] = {}
    for pointer in ("latest", "best"):
        folder = run / "checkpoints" / (run / "checkpoints" / pointer).read_text().strip()
        tables |= {f"{pointer}/{name}": value for name, value in _tensors(folder).items()}
    lines = {
        name: [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        for name in ("steps", "evaluations")
    }
    assert [line["step"] for line in lines["steps"]] == list(range(len(lines["steps"])))
    content = json.loads((run / "metrics.json").read_text())
    kept = {name: content[name] for name in ("validation", "test", "best_epoch", "epochs", "steps")}
    return Result(tables, [line["loss"] for line in lines["steps"]], lines["evaluations"], kept)


def differences(found: Result, expected: Result, *, bitwise: bool) -> list[str]:
    """What is not as expected: bit for bit, or metrics within 1e-6 and rows within 1e-4 (another number of ranks)."""
    told = []
    if found.tables.keys() != expected.tables.keys():
        return ["other tensors"]
    for name, value in found.tables.items():
        equal = torch.equal if bitwise else lambda a, b: torch.allclose(a, b, rtol=1e-3, atol=1e-4)
        if not equal(value, expected.tables[name]):
            told.append(f"{name} by {(value - expected.tables[name]).abs().max():.2g}")
    limit = 0.0 if bitwise else 1e-6
    for name in ("evaluations", "metrics"):
        if (off := _furthest(getattr(found, name), getattr(expected, name))) > limit:
            told.append(f"{name} by {off:.2g}")
    if (off := _furthest(found.losses, expected.losses)) > limit * 10:
        told.append(f"losses by {off:.2g}")
    return told


def _furthest(a: Any, b: Any) -> float:
    """The largest difference of two equal numbers in the same place; infinite where the places differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((_furthest(a[name], b[name]) for name in a), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max((_furthest(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b)
    return 0.0 if a == b else float("inf")


def _tensors(folder: Path) -> dict[str, Tensor]:
    stored = CheckpointReader(folder).read_metadata().state_dict_metadata
    state = {name: torch.empty(value.size, dtype=value.properties.dtype) for name, value in stored.items()}
    dcp.load(state, storage_reader=CheckpointReader(folder), no_dist=True)
    return state
