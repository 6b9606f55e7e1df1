"""Trials in which a signal reaches one rank of a training at a random moment, and `--resume auto` goes on."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cm3_dist.errors import DONE, INTERRUPTED, LOST
from tests.faults import forked, moments, results
from tests.faults.moments import Fault
from tests.support.launch import Training
from tests.support.small import prepare_small

TIMEOUT = 30  # seconds: machine.timeout of these runs, on however busy a machine
SETTINGS = [
    *("model.dim=8", "train.batch_size=60", "train.epochs=2", "evaluate.ks=[20]", "run.save_steps=3"),
    *("machine.device=cpu", "machine.threads=1", f"machine.timeout={TIMEOUT}"),
]
RANKS = (1, 2, 4)
# Ranks before and after the interruption.
CHANGES = [(1, 1), (2, 2), (2, 2), (4, 4), (4, 2), (2, 4), (1, 4)]
MOMENTS = ["step", "step", "save", "save", "commit", "evaluation", "evaluation", "start", "test", "result"]
NUMBERS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGUSR1]


@dataclass
class Trial:
    """One training that was interrupted, and what came of it."""

    number: int
    ranks: list[int]  # of each session
    faults: list[str] = field(default_factory=list)
    ended: list[list[int]] = field(default_factory=list)  # exit codes of the ranks, by session
    inside: int = 0  # faults that struck while the place was in work
    struck: int = 0  # faults whose moment came at all
    left_alone: int = 0  # sessions in which ranks were left behind by one that was killed
    named: int = 0  # of these, how often they named it
    waited: float = 0.0  # most seconds between the first end of a rank and the last
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        ranks = "->".join(map(str, self.ranks))
        came = "; ".join(self.wrong) or "survived"
        return f"trial {self.number}: ranks {ranks}: {'; '.join(self.faults)}: {came} ({self.seconds:.1f} s)"


class Kills:
    """Trials on one small data set.

    Args:
        folder: for everything.
        seed: behind every choice.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._arguments = [f"data.path={prepare_small(folder)}", *SETTINGS]
        self._whole: dict[int, results.Result] = {}
        self._usual: dict[int, dict[str, tuple[float, int]]] = {}

    def trial(self, number: int) -> Trial:
        """Interrupts a training once or twice, then lets it end."""
        began = time.monotonic()
        rng = np.random.default_rng([self._seed, number])
        before, after = CHANGES[number % len(CHANGES)]
        self._undisturbed(before)
        self._undisturbed(after)
        run = self._folder / f"trial-{number}"
        trial = Trial(number, [before, *([after] if rng.random() < 0.3 else []), after])
        for session, ranks in enumerate(trial.ranks):
            last = session + 1 == len(trial.ranks)
            fault = None if last else self._fault(rng, ranks, again=session > 0)
            self._session(trial, run, session, ranks, fault)
        if not trial.wrong:
            trial.wrong = self._compare(run, before, bitwise=before == after)
        trial.seconds = time.monotonic() - began
        return trial

    def restarted(self, number: int) -> Trial:
        """Kills a rank of a training under `torchrun --max-restarts`, which must end as if nothing had happened."""
        began = time.monotonic()
        rng = np.random.default_rng([self._seed, number, 3])
        ranks, rank = 2, int(rng.integers(2))
        self._undisturbed(ranks)
        run = self._folder / f"trial-{number}"
        step = int(rng.integers(1, len(self._whole[ranks].losses)))
        trial = Trial(
            number, [ranks], [f"SIGKILL to rank {rank} under torchrun, about step {step}"], struck=1, inside=1
        )
        arguments = [*self._arguments, f"run.dir={run}", "--resume", "auto", "machine.timeout=120"]
        training = Training(ranks, arguments, "--max-restarts=1")
        training.wait_for_steps(run, step)
        os.kill(training.rank_pids()[rank], signal.SIGKILL)
        code, said = training.finish(300)
        trial.ended = [[code]]
        if code != DONE:
            trial.wrong.append(f"ended with {code}: {said[-2000:]}")
        else:
            trial.wrong = self._compare(run, ranks, bitwise=True)
        trial.seconds = time.monotonic() - began
        return trial

    def _session(self, trial: Trial, run: Path, session: int, ranks: int, fault: Fault | None) -> None:
        note = self._folder / f"note-{trial.number}-{session}"

        def before(rank: int) -> None:
            if fault is not None and rank == fault.rank:
                usual = {moment: seconds for moment, (seconds, _) in self._usual[ranks].items()}
                moments.arm(fault, usual, note)

        output = self._folder / f"output-{trial.number}-{session}"
        processes = forked.train([*self._arguments, f"run.dir={run}", "--resume", "auto"], ranks, output, before)
        by_themselves = forked.wait(processes, after_first=2 * TIMEOUT + 30)
        codes = [process.code for process in processes]
        trial.ended.append([code for code in codes if code is not None])
        ends = [process.ended for process in processes]
        trial.waited = max(trial.waited, max(ends) - min(ends))
        if fault is not None:
            trial.faults.append(str(fault))
            trial.struck += note.exists()
            trial.inside += note.exists() and note.read_text() == "inside"
        if not by_themselves:
            trial.wrong.append(f"session {session}: ranks did not end by themselves: {codes}")
        struck = fault is not None and note.exists()
        number = fault.number if fault is not None else 0
        allowed = [{DONE}] if not struck else [{DONE}, {INTERRUPTED}] if number != signal.SIGKILL else []
        # A rank that is killed takes the others along, with whatever code; nobody is left to agree with.
        if allowed and set(codes) not in allowed and not (struck and -number in codes):
            said = processes[int(np.argmax([code != DONE for code in codes]))].said()
            trial.wrong.append(f"session {session}: ended with {codes}: {said[-2000:]}")
        if fault is not None and -fault.number in codes and LOST in codes:
            said = "\n".join(process.said() for process in processes)
            # The store of these runs lives in rank 0.
            keeper = "process that holds the ranks' store" if fault.rank == 0 else "no rank"
            trial.named += f"error: rank {fault.rank} ended" in said or keeper in said
            trial.left_alone += 1

    def _fault(self, rng: np.random.Generator, ranks: int, *, again: bool) -> Fault:
        moment = str(rng.choice(MOMENTS))
        rank = 0 if moment in ("commit", "result") else int(rng.integers(ranks))
        times = self._usual[ranks][moment][1]
        entry = int(rng.integers(1, (min(times, 2) if again else times) + 1))
        return Fault(moment, entry, float(rng.random()), int(rng.choice(NUMBERS)), rank)

    def _undisturbed(self, ranks: int) -> None:
        """Runs once without a fault, for the result and for how long its places take."""
        if ranks in self._whole:
            return
        run, log = self._folder / f"whole-{ranks}", self._folder / f"places-{ranks}"
        processes = forked.train(
            [*self._arguments, f"run.dir={run}"],
            ranks,
            self._folder / f"output-whole-{ranks}",
            lambda rank: moments.measure(log) if rank == 0 else None,
        )
        forked.wait(processes, after_first=60)
        assert [process.code for process in processes] == [DONE] * ranks, processes[0].said()
        self._whole[ranks], self._usual[ranks] = results.read(run), moments.usual(log)

    def _compare(self, run: Path, ranks: int, *, bitwise: bool) -> list[str]:
        left = [path.name for path in (run / "checkpoints").glob("*.tmp")]
        wrong = [f"left behind: {name}" for name in left]
        return wrong + results.differences(results.read(run), self._whole[ranks], bitwise=bitwise)


def summary(trials: list[Trial]) -> dict[str, object]:
    """Counts, and every trial."""
    return {
        "trials": len(trials),
        "survived": sum(not trial.wrong for trial in trials),
        "interruptions": sum(trial.struck for trial in trials),
        "in_the_middle": sum(trial.inside for trial in trials),
        "ranks_left_alone": sum(trial.left_alone for trial in trials),
        "named_the_lost_rank": sum(trial.named for trial in trials),
        "longest_wait_s": round(max((trial.waited for trial in trials), default=0.0), 1),
        "each": [asdict(trial) for trial in trials],
    }
