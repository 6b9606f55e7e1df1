"""Trials in which a preparation ends at every moment between its stages in turn: it is killed, or the disk is full.

The moments are those at which a stage begins, and at which a result that is kept begins and is complete; a stage
that is added is tried without a word here. The same command must then write what it would have written.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from partition.folder.manifest import read_manifest
from tests.faults import forked
from tests.faults.preparing import write_tables
from tests.faults.trial import Trial
from tests.support.full_disk import fill, mount, unmount
from tests.support.small import small_dataset

LEFT = (0, 96 << 10)  # bytes that a full disk still takes: nothing, or some files but not all
ROOM = 64 << 20
OPTIONS = ["--parts", "3", "--method", "stream", "--pca", "text=8", "--noise", "0.2", "--threads", "2"]


@dataclass
class StageTrial(Trial):
    """A preparation that ended at one of its moments."""

    moment: str = ""

    def __str__(self) -> str:
        return f"{self.kind} at {self.moment}: {self.verdict}"


class Moments:
    """Wraps the stages and results of this process; `reached` is called with the name of every moment."""

    def __init__(self, reached: Callable[[str], object]) -> None:
        from partition.resume import Work
        from partition.stages import Stages

        stage, result = Stages.__call__, Work.result

        @contextmanager
        def wrapped_stage(stages: Stages, name: str, *arguments: Any, **options: Any) -> Iterator[Any]:
            reached(f"the beginning of {name}")
            with stage(stages, name, *arguments, **options) as say:
                yield say

        def wrapped_result(work: Work, name: str, make: Callable[[Path], object]) -> Path:
            def made(path: Path) -> None:
                reached(f"the beginning of the result {name}")
                make(path)
                reached(f"the last moment of the result {name}")

            path = result(work, name, made)
            reached(f"the end of the result {name}")
            return path

        Stages.__call__ = wrapped_stage  # type: ignore[method-assign, assignment]
        Work.result = wrapped_result  # type: ignore[method-assign, assignment]


class Preparing:
    """Trials on one data set.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        dataset = small_dataset(users=400, items=300, degree=20, widths=(96, 32), spread=1 / 2)
        self._data = write_tables(folder / "tables", dataset)
        log = folder / "moments"
        place = folder / "whole"
        place.mkdir()

        def noted(name: str) -> None:
            with log.open("a") as lines:
                lines.write(name + "\n")

        code, said = self._prepare(place, lambda: Moments(noted))
        assert code == 0, said
        self.moments = log.read_text().splitlines()
        self._digest = read_manifest(place / "prepared").digest()

    def killed(self) -> Iterator[StageTrial]:
        """One trial for every moment."""
        for number, moment in enumerate(self.moments):
            trial, place = StageTrial("SIGKILL", moment=moment), self._folder / f"killed-{number}"
            place.mkdir()
            code, trial.said = self._prepare(place, _at(number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            if code != -signal.SIGKILL:
                trial.wrong.append(f"ended with {code}")
            self._ends_well(trial, place)
            yield trial

    def full(self) -> Iterator[StageTrial]:
        """One trial for every moment and size of the rest of the disk."""
        for left in LEFT:
            for number, moment in enumerate(self.moments):
                trial = StageTrial(f"a disk with {left} bytes left", moment=moment)
                disk = self._folder / "disk"
                disk.mkdir(exist_ok=True)
                if mount(disk, ROOM):
                    try:
                        self._full(trial, disk, number, left)
                    finally:
                        unmount(disk)
                else:
                    trial.tried, trial.said = False, "needs root, to mount a disk in memory"
                yield trial

    def _full(self, trial: StageTrial, disk: Path, number: int, left: int) -> None:
        code, trial.said = self._prepare(disk, _at(number, lambda: fill(disk, left)))
        errors = [line for line in trial.said.splitlines() if re.match(r"error(\[[\w.-]+\])?: ", line)]
        if code == 2:
            if len(errors) != 1 or str(disk) not in errors[0] or "No space left on device" not in errors[0]:
                trial.wrong.append(f"said {trial.said[-1000:]}")
            if (disk / "prepared").exists():
                trial.wrong.append("half a folder under the final name")
        elif code != 0 or (left == 0 and number < len(self.moments) // 2):
            trial.wrong.append(f"ended with {code}: {trial.said[-1000:]}")
        if "Traceback" in trial.said:
            trial.wrong.append("a traceback")
        (disk / "filler").unlink()
        if code:
            self._ends_well(trial, disk)

    def _ends_well(self, trial: StageTrial, place: Path) -> None:
        if (place / "prepared").exists():
            code, said = 0, ""
        else:
            code, said = self._prepare(place, lambda: None)
        if code:
            trial.wrong.append(f"resumed, it ended with {code}: {said[-1000:]}")
        elif read_manifest(place / "prepared").digest() != self._digest:
            trial.wrong.append("another result")
        if left := sorted(path.name for path in place.iterdir() if path.name != "prepared"):
            trial.wrong.append(f"left behind: {', '.join(left)}")

    def _prepare(self, place: Path, before: Callable[[], object]) -> tuple[int, str]:
        def command() -> None:
            from partition.cli import main

            sys.argv = ["partition", "build", "--input", str(self._data), "--output", str(place / "prepared"), *OPTIONS]
            before()
            main()

        process = forked.fork(command, self._folder / "output.txt")
        forked.wait([process], after_first=0)
        assert process.code is not None
        return process.code, process.said()


def _at(number: int, act: Callable[[], object]) -> Callable[[], object]:
    """Makes this process do something when it reaches its moment `number`."""

    def arm() -> None:
        reached = iter(range(10**6))
        Moments(lambda _: act() if next(reached) == number else None)

    return arm
