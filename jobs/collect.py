"""Reads run folders: settings, metrics, curves, and the command that repeats the run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cm3_dist.config.loading import REMOVED, flat
from cm3_dist.config.run_files import EVALUATIONS, METRICS, SETTINGS, STEPS
from cm3_dist.config.settings import Settings
from partition.errors import InputError

CURVE_POINTS = 400  # at most


@dataclass(frozen=True)
class Run:
    """A finished run. `settings` and `metrics` are flat: `loss.gamma`, `recall@20`."""

    folder: Path
    settings: dict[str, Any]
    content: dict[str, Any]  # metrics.json
    command: str
    train_seconds: float  # over all sessions, rank 0
    loss: list[tuple[int, float]]  # (step, loss), thinned out to CURVE_POINTS
    evaluations: list[dict[str, Any]]  # those on validation

    @property
    def seed(self) -> int:
        """The random seed."""
        return int(self.settings["train.seed"])

    @property
    def split(self) -> str:
        """What runs are compared on: the test, or validation if there is no test."""
        return "test" if self.content["test"] else "validation"

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the best validation epoch, on `split`."""
        found: dict[str, float] = self.content[self.split]
        return found

    @property
    def data(self) -> str:
        """Data set and kind of split: runs are compared within one of them."""
        name = self.content.get("data") or Path(self.settings["data.path"]).name
        return f"{name}, cold items" if self.content.get("split") == "cold_items" else name

    @property
    def memory(self) -> float | None:
        """Peak resident memory of any rank, in MiB; None if the run did not record it."""
        ranks = self.content.get("peak_memory_mib", {}).get("resident")
        return max(ranks) if ranks else None


def collect(roots: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """Returns the finished runs in and below the given folders, and the folders of unfinished ones.

    Raises:
        InputError: a folder does not exist or holds no run at all, or a file of a run is damaged.
    """
    runs, unfinished = [], []
    for root in roots:
        if not root.is_dir():
            raise InputError(f"{root}: no such folder", "runs.folder")
        folders = sorted(path.parent for path in root.rglob(SETTINGS))
        if not folders:
            raise InputError(f"{root}: no run in it: no {SETTINGS} in any folder", "runs.none")
        for folder in folders:
            if (folder / METRICS).exists():
                runs.append(_read(folder))
            else:
                unfinished.append(folder)
    unique = {run.folder.resolve(): run for run in runs}
    return list(unique.values()), sorted(set(unfinished))


def collect_finished(roots: list[Path]) -> tuple[list[Run], list[Path]]:
    """As `collect`; raises InputError if no run is finished."""
    runs, unfinished = collect(roots)
    if not runs:
        raise InputError(f"{roots[0]}: no finished run yet; {len(unfinished)} begun", "runs.unfinished")
    return runs, unfinished


def refuse_unevaluated(runs: Iterable[Run]) -> None:
    """Refuses runs that nothing can be chosen by.

    Raises:
        InputError: `split.no-validation`, if there is one; the message names the first.
    """
    for run in runs:
        message = "was not evaluated, because its data have no validation interactions; leave it out"
        raise InputError(f"{run.folder}: {message}, or prepare with another --split", "split.no-validation")


def by_data(runs: list[Run]) -> dict[str, list[Run]]:
    """Returns the runs per data set, in order of appearance."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.data, []).append(run)
    return found


def _read(folder: Path) -> Run:
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        steps = list(_lines(folder / STEPS))
        evaluations = [line for line in _lines(folder / EVALUATIONS) if line["split"] == "validation"]
        every = max(1, -(-len(steps) // CURVE_POINTS))
        return Run(
            folder=folder,
            settings=_settings(folder),
            content=content,
            command=_command(folder),
            train_seconds=sum(sum(line["seconds"].values()) for line in steps),
            loss=[(line["step"], line["loss"]) for line in steps[::every]],
            evaluations=evaluations,
        )
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"{folder}: not a run folder that can be read: {error!r}", "run.damaged") from None


def _settings(folder: Path) -> dict[str, Any]:
    """Settings by dotted key: later ones at their default, and removed ones only if they had an effect."""
    recorded = flat(yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8")))
    in_effect = {key: value for key, value in recorded.items() if key not in REMOVED or value != REMOVED[key]}
    return flat(Settings().plain()) | in_effect


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if path.exists():
        with path.open(encoding="utf-8") as handle:
            for line in handle:
                yield json.loads(line)


def _command(folder: Path) -> str:
    """The command that repeats the run: that of its first session, without `--resume`."""
    path = folder / "command.txt"
    if not path.exists():
        return f"python -m cm3_dist.train --config {folder / SETTINGS}"
    line = path.read_text(encoding="utf-8").splitlines()[0]
    words, _, note = line.partition("  # on ")
    arguments = re.sub(r" --resume( auto)?\b", "", words.partition(" ")[2])
    ranks = note.split(" ")[0] if note else "1"
    launcher = "python" if ranks == "1" else f"torchrun --nproc_per_node={ranks}"
    return f"{launcher} -m cm3_dist.train {arguments}".strip()
