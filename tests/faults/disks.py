"""Trials of folders that cannot be written: a disk that fills up, one that is read-only, a folder that goes away.

The disks are real ones in memory (tmpfs), which only root may mount; elsewhere those trials are counted as not tried.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cm3_dist.config.run_files import STEPS
from cm3_dist.errors import BAD_INPUT, DONE
from tests.faults import forked, results
from tests.faults.kills import SETTINGS
from tests.faults.stages import ROOM
from tests.faults.trial import Trial
from tests.support.full_disk import mount, unmount
from tests.support.launch import lines
from tests.support.small import prepare_small

RANKS = 2


@dataclass
class DiskTrial(Trial):
    """A training whose folder could not be written."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.verdict}: {self.said}"


class Disks:
    """Trials on one small data set.

    Args:
        folder: for everything.
        seed: behind every size.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, np.random.default_rng([seed, 4])
        self._arguments = [f"data.path={prepare_small(folder)}", *SETTINGS]
        whole = folder / "whole"
        codes, said = self._train(whole)
        assert codes == [DONE] * RANKS, said
        self._whole = results.read(whole)
        self._bytes = sum(path.stat().st_blocks * 512 for path in whole.rglob("*"))

    def trials(self, full: int) -> Iterator[DiskTrial]:
        """So many of disks that fill up, and one of each other kind."""
        for share in self._rng.uniform(0.05, 0.95, full):
            yield self._on_a_disk(
                f"a disk that is full at {share:.0%} of the run's size", self._full, int(share * self._bytes)
            )
        yield self._on_a_disk("a disk that is read-only", self._read_only, ROOM)
        yield self._removed(
            "the run's folder is moved away", lambda run: run, lambda run: run.rename(run.with_name("x"))
        )
        yield self._removed("the run's folder is deleted", lambda run: run, _delete)
        yield self._removed("steps.jsonl is deleted", lambda run: run / STEPS, lambda run: (run / STEPS).unlink())

    def _on_a_disk(self, kind: str, work: Callable[[DiskTrial, Path, Path], None], size: int) -> DiskTrial:
        trial, disk = DiskTrial(kind), self._folder / "disk"
        disk.mkdir(exist_ok=True)
        if not mount(disk, size):
            trial.tried, trial.said = False, "needs root, to mount a disk in memory"
            return trial
        try:
            work(trial, disk, disk / "run")
        finally:
            unmount(disk)
        return trial

    def _full(self, trial: DiskTrial, disk: Path, run: Path) -> None:
        codes, said = self._train(run)
        self._judge(trial, codes, said, "No space left on device", run)
        mount(disk, ROOM, "remount")
        self._ends_well(trial, run)

    def _read_only(self, trial: DiskTrial, disk: Path, run: Path) -> None:
        mount(disk, ROOM, "remount", "ro")
        codes, said = self._train(run)
        self._judge(trial, codes, said, "Read-only file system", run)
        mount(disk, ROOM, "remount", "rw")
        if list(disk.iterdir()):
            trial.wrong.append("something was written")
        self._ends_well(trial, run)

    def _removed(self, kind: str, what: Callable[[Path], Path], remove: Callable[[Path], object]) -> DiskTrial:
        trial, run = DiskTrial(kind), self._folder / "removed" / "run"
        shutil.rmtree(run.parent, ignore_errors=True)
        with self._started(run) as processes:
            _wait_for_steps(run, 5, processes)
            remove(run)
            forked.wait(processes, after_first=60)
            codes, said = _ends(processes)
        self._judge(trial, codes, said, "", run)
        if what(run).exists():
            trial.wrong.append("it was made again")
        if what(run) == run:
            self._ends_well(trial, run)
        return trial

    def _judge(self, trial: DiskTrial, codes: list[int], said: str, reason: str, run: Path) -> None:
        """Every rank ends with code 2, and one line names the file and the reason."""
        errors = [line for line in said.splitlines() if re.match(r"error(\[[\w.-]+\])?: ", line)]
        trial.said = errors[0] if errors else said[-500:]
        if codes != [BAD_INPUT] * RANKS:
            trial.wrong.append(f"ended with {codes}")
        if len(errors) != 1 or str(run) not in errors[0] or reason not in errors[0] or "Traceback" in said:
            trial.wrong.append(f"said {said[-2000:]}")

    def _ends_well(self, trial: DiskTrial, run: Path) -> None:
        """Once there is room, `--resume auto` goes on to what it would have been."""
        codes, said = self._train(run, "--resume", "auto")
        if codes != [DONE] * RANKS:
            trial.wrong.append(f"resumed, it ended with {codes}: {said[-2000:]}")
        else:
            trial.wrong += results.differences(results.read(run), self._whole, bitwise=True)

    def _train(self, run: Path, *more: str) -> tuple[list[int], str]:
        with self._started(run, *more) as processes:
            forked.wait(processes, after_first=60)
            return _ends(processes)

    @contextmanager
    def _started(self, run: Path, *more: str) -> Iterator[list[forked.Process]]:
        arguments = [*self._arguments, f"run.dir={run}", *more]
        processes = forked.train(arguments, RANKS, self._folder / "output")
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()


def _delete(run: Path) -> None:
    """Deletes a folder at once: while it is emptied in its place, a writer could add to it."""
    doomed = run.with_name("doomed")
    run.rename(doomed)
    shutil.rmtree(doomed)


def _wait_for_steps(run: Path, count: int, processes: list[forked.Process]) -> None:
    deadline = time.monotonic() + 60
    while lines(run / STEPS) < count:
        assert time.monotonic() < deadline, processes[0].said()
        time.sleep(0.002)


def _ends(processes: list[forked.Process]) -> tuple[list[int], str]:
    return [process.code if process.code is not None else -1 for process in processes], "\n".join(
        process.said() for process in processes
    )


def summary(trials: Sequence[Trial]) -> dict[str, object]:
    """Counts, and every trial."""
    tried = [trial for trial in trials if trial.tried]
    return {
        "trials": len(tried),
        "survived": sum(not trial.wrong for trial in tried),
        "not_tried": len(trials) - len(tried),
        "each": [asdict(trial) for trial in trials],
    }
