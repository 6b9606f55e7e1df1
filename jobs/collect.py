"""Reads run folders: what was set, what came out, how it went, and the command that repeats it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from cm3_dist.config.loading import flat
from cm3_dist.config.run_files import EVALUATIONS, METRICS, SETTINGS, STEPS
from cm3_dist.config.settings import Settings
from partition.errors import InputError

POINTS = 400  # of a curve, at most


@dataclass(frozen=True)
class Run:
    """A finished run. `settings` and `metrics` are flat: `loss.gamma`, `test.recall@20`."""

    folder: Path
    settings: dict[str, Any]
    content: dict[str, Any]  # metrics.json
    command: str
    train_seconds: float  # over all sessions, rank 0
    loss: list[tuple[int, float]]  # (step, loss), thinned out
    evaluations: list[dict[str, Any]]  # those on validation

    @property
    def seed(self) -> int:
        """Of every random choice."""
        return int(self.settings["train.seed"])

    @property
    def split(self) -> str:
        """What is compared: the test, or validation where there is none."""
        return "test" if self.content["test"] else "validation"

    @property
    def metrics(self) -> dict[str, float]:
        """At the best validation epoch, on `split`."""
        found: dict[str, float] = self.content[self.split]
        return found

    @property
    def data(self) -> str:
        """Data set and how it was split: runs compare within one of them."""
        name = self.content.get("data") or Path(self.settings["data.path"]).name
        return f"{name}, cold items" if self.content.get("split") == "cold_items" else name

    @property
    def memory(self) -> float | None:
        """Most resident memory of any rank, in MiB; None in runs of before it was recorded."""
        ranks = self.content.get("peak_memory_mib", {}).get("resident")
        return max(ranks) if ranks else None


def collect(roots: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """Finished runs in and below the given folders, and the folders of those that are not finished.

    Raises:
        InputError: a folder is not there, holds no run at all, or a file of a run is damaged.
    """
    runs, unfinished = [], []
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder")
        folders = sorted(path.parent for path in root.rglob(SETTINGS))
        if not folders:
            raise InputError(f"{root}: no run in it: no {SETTINGS} in any folder")
        for folder in folders:
            if (folder / METRICS).exists():
                runs.append(_read(folder))
            else:
                unfinished.append(folder)
    unique = {run.folder.resolve(): run for run in runs}
    return list(unique.values()), sorted(set(unfinished))


def collect_finished(roots: list[Path]) -> tuple[list[Run], list[Path]]:
    """As `collect`; InputError when no run is finished."""
    runs, unfinished = collect(roots)
    if not runs:
        raise InputError(f"{roots[0]}: no finished run yet; {len(unfinished)} begun")
    return runs, unfinished


def write_table(runs: list[Run], path: Path) -> None:
    """A Parquet table with a row a run, in one move."""
    rows = [_row(run) for run in runs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.table(columns), temporary)
    temporary.rename(path)


def _row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"folder": str(run.folder), "data": run.data, "command": run.command}
    row |= {f"settings.{key}": value for key, value in run.settings.items()}
    row |= {f"{split}.{name}": value for split in ("validation", "test") for name, value in run.content[split].items()}
    row |= {name: run.content[name] for name in ("best_epoch", "epochs", "steps", "world_size", "parts")}
    return row | {"train_seconds": run.train_seconds, "peak_memory_mib": run.memory}


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    if len(kinds) > 1 or kinds & {list, dict}:  # lists, and settings that are a number here and a word there
        return pa.array([None if value is None else json.dumps(value) for value in values])
    return pa.array(values)


def _read(folder: Path) -> Run:
    try:
        said = flat(yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8")))
        settings = flat(Settings().plain()) | said  # an older run did what newer settings do by default
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        steps = list(_lines(folder / STEPS))
        evaluations = [line for line in _lines(folder / EVALUATIONS) if line["split"] == "validation"]
        keep = max(1, -(-len(steps) // POINTS))
        return Run(
            folder=folder,
            settings=settings,
            content=content,
            command=_command(folder),
            train_seconds=sum(sum(line["seconds"].values()) for line in steps),
            loss=[(line["step"], line["loss"]) for line in steps[::keep]],
            evaluations=evaluations,
        )
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{folder}: not a run folder that can be read: {error!r}") from None


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as handle:
            for line in handle:
                yield json.loads(line)


def _command(folder: Path) -> str:
    """What a person types to repeat the run, without the `--resume` of later sessions."""
    path = folder / "command.txt"
    if not path.exists():
        return f"python -m cm3_dist.train --config {folder / SETTINGS}"
    line = path.read_text(encoding="utf-8").splitlines()[0]
    words, _, note = line.partition("  # on ")
    arguments = re.sub(r" --resume( auto)?\b", "", words.partition(" ")[2])
    ranks = note.split(" ")[0] if note else "1"
    launcher = "python" if ranks == "1" else f"torchrun --nproc_per_node={ranks}"
    return f"{launcher} -m cm3_dist.train {arguments}".strip()
