"""Trials in which one file of a checkpoint or of a prepared folder is changed: the command must refuse it by name."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cm3_dist.errors import BAD_INPUT, DONE
from tests.faults import forked
from tests.faults.kills import SETTINGS
from tests.faults.preparing import partition, write_tables

KINDS = ("truncated", "flipped", "lengthened", "deleted")
RESUMED = ("train.epochs=3",)


@dataclass
class Damage:
    """One changed file, and what the command said to it."""

    file: str
    kind: str
    code: int
    said: str
    detected: bool  # refused, with a line that names the file
    loaded: bool  # the command went on with it
    passed_over: bool | None = None  # a checkpoint: `--resume auto` named it and went on from the one before


class Damages:
    """A prepared folder with every kind of file, and a run on two ranks with checkpoints.

    Args:
        folder: for everything.
        seed: behind every place in a file.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, np.random.default_rng([seed, 2])
        data = write_tables(folder / "damage-tables")
        self._prepared, self._run = folder / "damage-prepared", folder / "damage-run"
        options = ["--input", str(data), "--parts", "4", "--output", str(self._prepared), "--pca", "image=4"]
        code, said = partition(["build", *options], folder / "damage.txt", lambda: None)
        assert code == 0, said
        code, said = self._train(self._prepared, self._run, [])
        assert code == DONE, said

    def trials(self) -> list[Damage]:
        """Every kind of damage to every kind of file."""
        return [self._one(path, kind) for path in self._files() for kind in KINDS]

    def _files(self) -> list[Path]:
        checkpoints = self._run / "checkpoints"
        newest = checkpoints / (checkpoints / "latest").read_text().strip()
        part = self._prepared / "parts" / "part-00002"
        shared = [path for path in self._prepared.iterdir() if path.is_file()]
        return [*sorted(newest.iterdir()), checkpoints / "latest", *sorted(shared), *sorted(part.iterdir())]

    def _one(self, path: Path, kind: str) -> Damage:
        """Damages a copy of the folder that the file is in."""
        copy = self._folder / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        of_run = path.is_relative_to(self._run)
        shutil.copytree(self._run if of_run else self._prepared, copy)
        target = copy / path.relative_to(self._run if of_run else self._prepared)
        self._break(target, kind)
        if not of_run:
            code, said = self._train(copy, self._folder / "damaged-run", [])
            loaded = (self._folder / "damaged-run").exists()
            shutil.rmtree(self._folder / "damaged-run", ignore_errors=True)
            return _judged(path, kind, code, said, target, loaded)
        (copy / "metrics.json").unlink()
        before = (copy / "steps.jsonl").read_bytes()
        code, said = self._train(self._prepared, copy, ["--resume", *RESUMED])
        found = _judged(path, kind, code, said, target, (copy / "steps.jsonl").read_bytes() != before)
        code, said = self._train(self._prepared, copy, ["--resume", "auto", *RESUMED])
        # A damaged pointer need not be told: what it pointed at is found without it.
        named = target.name == "latest" or f"passed over: {target.parent}" in said
        found.passed_over = code == DONE and named
        return found

    def _train(self, prepared: Path, run: Path, more: list[str]) -> tuple[int, str]:
        output = self._folder / "damage-output"
        processes = forked.train([f"data.path={prepared}", f"run.dir={run}", *SETTINGS, *more], 2, output)
        forked.wait(processes, after_first=60)
        codes = {process.code for process in processes}
        assert len(codes) == 1, codes
        return processes[0].code or 0, processes[0].said()

    def _break(self, path: Path, kind: str) -> None:
        data = bytearray(path.read_bytes())
        if kind == "deleted":
            path.unlink()
            return
        if kind == "truncated":
            del data[int(self._rng.integers(len(data))) :]
        elif kind == "lengthened":
            data += bytes(self._rng.integers(1, 256, int(self._rng.integers(1, 100)), dtype=np.uint8))
        else:
            # The pointer's digits could become those of another whole checkpoint, which is a person's right to choose.
            places = len(data) - 1 if path.name != "latest" else 5
            data[int(self._rng.integers(places))] ^= int(self._rng.integers(1, 256))
        path.write_bytes(data)


def _judged(path: Path, kind: str, code: int, said: str, target: Path, loaded: bool) -> Damage:
    errors = [line for line in said.splitlines() if re.match(r"error(\[[\w.-]+\])?: ", line)]
    told = len(errors) == 1 and str(target) in errors[0] and "Traceback" not in said
    if target.name == "latest" and kind == "deleted":
        told = len(errors) == 1 and "no checkpoint to resume from" in errors[0]
    line = errors[0] if errors else said[-500:]
    return Damage(path.name, kind, code, line, code == BAD_INPUT and told, loaded)


def summary(trials: list[Damage]) -> dict[str, object]:
    """Counts, and every trial."""
    checkpoints = [trial for trial in trials if trial.passed_over is not None]
    return {
        "trials": len(trials),
        "detected": sum(trial.detected for trial in trials),
        "loaded": sum(trial.loaded for trial in trials),
        "of_checkpoints": len(checkpoints),
        "passed_over": sum(bool(trial.passed_over) for trial in checkpoints),
        "each": [asdict(trial) for trial in trials],
    }
