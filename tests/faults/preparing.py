"""Trials in which a preparation is killed at a random moment, and the same command goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from partition.folder.manifest import read_manifest
from partition.transform.dataset import Dataset
from tests.faults import forked, moments
from tests.faults.kills import Trial
from tests.faults.moments import Fault
from tests.support.small import small_dataset

METHODS = ("metis", "stream", "random")


def write_tables(folder: Path, dataset: Dataset | None = None) -> Path:
    """A data set, by default the small one, as a log and an items table."""
    folder.mkdir()
    dataset = dataset or small_dataset()
    log = {"user": dataset.user_ids.take(pa.array(dataset.user)), "item": dataset.item_ids.take(pa.array(dataset.item))}
    pq.write_table(pa.table(log), folder / "log.parquet")
    items = {name: pa.array(features.values.tolist()) for name, features in dataset.features.items()}
    pq.write_table(pa.table({"item": dataset.item_ids, **items}), folder / "items.parquet")
    return folder


class Preparations:
    """Trials on one small data set.

    Args:
        folder: for everything.
        seed: behind every choice.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._data = write_tables(folder / "tables")
        self._usual: dict[str, dict[str, float]] = {}
        self._digest: dict[str, str] = {}

    def trial(self, number: int) -> Trial:
        """Kills a preparation; then the same command must write what it would have written."""
        began = time.monotonic()
        rng = np.random.default_rng([self._seed, number, 1])
        method = METHODS[number % len(METHODS)]
        self._undisturbed(method)
        moment = "writing" if rng.random() < 0.5 else "preparation"
        fault = Fault(moment, 1, float(rng.random()), signal.SIGKILL, 0)
        trial = Trial(number, [0, 0], [f"{method}: {fault}"])
        place = self._folder / f"trial-{number}"
        place.mkdir()
        note = self._folder / f"note-{number}"
        code, said = self._prepare(method, place, lambda: moments.arm(fault, self._usual[method], note))
        trial.struck += note.exists()
        trial.inside += note.exists() and note.read_text() == "inside"
        if (place / "prepared").exists() and self._verify(place)[0]:
            trial.wrong.append("half a folder under the final name")
        again, said = self._prepare(method, place, lambda: None) if not (place / "prepared").exists() else (0, "")
        trial.ended = [[code], [again]]
        if again:
            trial.wrong.append(f"ended with {again}: {said[-2000:]}")
        else:
            code, said = self._verify(place)
            if code:
                trial.wrong.append(f"verify: {said[-500:]}")
            if read_manifest(place / "prepared").digest() != self._digest[method]:
                trial.wrong.append("another result")
            if left := sorted(path.name for path in place.iterdir() if path.name not in ("prepared", "output.txt")):
                trial.wrong.append(f"left behind: {', '.join(left)}")
        trial.seconds = time.monotonic() - began
        return trial

    def _undisturbed(self, method: str) -> None:
        if method in self._digest:
            return
        place, log = self._folder / f"whole-{method}", self._folder / f"places-{method}"
        place.mkdir()
        code, said = self._prepare(method, place, lambda: moments.measure(log))
        assert code == 0, said
        self._usual[method] = {moment: seconds for moment, (seconds, _) in moments.usual(log).items()}
        self._digest[method] = read_manifest(place / "prepared").digest()

    def _prepare(self, method: str, place: Path, before: Callable[[], object]) -> tuple[int, str]:
        options = ["--input", str(self._data), "--parts", "4", "--output", str(place / "prepared"), "--method", method]
        return partition(["build", *options], place / "output.txt", before)

    def _verify(self, place: Path) -> tuple[int, str]:
        return partition(["verify", str(place / "prepared")], place / "output.txt", lambda: None)


def partition(arguments: list[str], output: Path, before: Callable[[], object]) -> tuple[int, str]:
    """Runs `python -m partition` in a process of its own: exit code and output."""

    def command() -> None:
        import sys

        from partition.cli import main

        sys.argv = ["partition", *arguments]
        before()
        main()

    process = forked.fork(command, output)
    forked.wait([process], after_first=0)
    assert process.code is not None
    return process.code, process.said()
