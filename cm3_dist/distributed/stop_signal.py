"""When to save and when to stop: what all ranks agree on after a step, whichever of them a signal reached.

The first SIGTERM, SIGUSR1 or Ctrl-C asks for a checkpoint and the end of the run; the next one ends the process at
once, also while it waits for another rank. A wish travels in a tiny collective of its own between the hosts, which is
started after one step and read after the next: neither the device nor another rank's step is waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor

from cm3_dist.config.settings import Run
from cm3_dist.distributed.runtime import Runtime
from cm3_dist.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Launchers pass on to the ranks what reached them directly as well: within this time it is the same wish.
SAME_WISH = 2.0  # seconds


@dataclass(frozen=True)
class Verdict:
    """What all ranks do now."""

    stop: int  # the number of the signal that asked for it, or 0
    save: bool  # it is time for a checkpoint
    failed: bool  # the last one could not be written


class Watch:
    """Listens for signals while it is entered, and keeps the time between checkpoints. Main thread only.

    Args:
        settings: how often to save.
        runtime: this rank.
        failed: whether a save in the background has failed on this rank.
    """

    def __init__(self, settings: Run, runtime: Runtime, failed: Callable[[], bool] = lambda: False) -> None:
        self._runtime, self._failed = runtime, failed
        self._steps = settings.save_steps
        self._seconds = None if settings.save_minutes is None else settings.save_minutes * 60
        self._signal, self._since, self._saved = 0, 0.0, time.monotonic()
        self._asked: tuple[Tensor, dist.Work] | None = None

    def __enter__(self) -> Watch:
        # Python runs its handlers between two instructions of the main thread, which may be waiting for a dead rank
        # inside a collective. What the handler in C writes into a pipe another thread can read meanwhile.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Once the checkpoint is there, the process ends by itself; a launcher that hurries it would only add noise.
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if isinstance(error, Interrupted) else handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def after_step(self, done: int) -> Verdict:
        """What to do after `done` steps. Collective; a signal counts one step later, on every rank the same one."""
        due = self._steps is not None and done % self._steps == 0
        if self._runtime.world_size == 1:
            stop, late, failed = self._wishes()
        else:
            stop, late, failed = self._answer()
            if not stop:
                self._ask()
        return Verdict(stop, due or bool(late), bool(failed))

    def now(self) -> int:
        """The signal that asked any rank to stop by now, or 0. Collective; waits for the slowest rank."""
        if self._runtime.world_size == 1:
            return self._wishes()[0]
        stop, *_ = self._answer()
        if not stop:
            self._ask()
            stop, *_ = self._answer()
        return stop

    def saved(self) -> None:
        """Starts the time to the next checkpoint."""
        self._saved = time.monotonic()

    def _wishes(self) -> tuple[int, int, int]:
        """This rank's: a signal's number; whether it is time to save, by rank 0's clock; whether a save failed."""
        late = self._seconds is not None and time.monotonic() - self._saved >= self._seconds
        return self._signal, int(late and self._runtime.rank == 0), int(self._failed())

    def _ask(self) -> None:
        wishes = torch.tensor(self._wishes())
        work = dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._runtime.control, async_op=True)
        assert work is not None
        self._asked = wishes, work

    def _answer(self) -> tuple[int, int, int]:
        if self._asked is None:
            return 0, 0, 0
        (wishes, work), self._asked = self._asked, None
        work.wait()
        stop, late, failed = wishes.tolist()
        return stop, late, failed

    def _listen(self) -> None:
        while number := os.read(self._read, 1)[0]:
            if number not in SIGNALS:
                continue
            name = signal.Signals(number).name
            if self._signal and time.monotonic() - self._since > SAME_WISH:
                with contextlib.suppress(OSError, ValueError):
                    print(f"rank {self._runtime.rank}: {name} again, leaving at once", file=sys.stderr, flush=True)
                os._exit(128 + number)
            if not self._signal:
                self._signal, self._since = number, time.monotonic()
                if self._runtime.rank == 0:
                    with contextlib.suppress(OSError, ValueError):
                        note = f"{name}: saving after this step, then stopping; once more leaves at once"
                        print(note, file=sys.stderr, flush=True)
