"""When to save and when to stop: what all ranks agree on after each step, whichever rank a signal reached.

The first SIGTERM, SIGUSR1 or Ctrl-C requests a checkpoint and the end of the run; the next one ends the process at
once, even while it waits for another rank. Requests are all-reduced (MAX) asynchronously between the hosts, issued
after one step and read after the next, so that ranks wait neither for the device nor for each other's current step.
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
# Launchers forward signals that also reached the ranks directly; signals this close together are one request.
SAME_REQUEST = 2.0  # seconds


@dataclass(frozen=True)
class Verdict:
    """What all ranks do after a step."""

    stop: int  # number of the signal that requested it, or 0
    save: bool  # a checkpoint is due
    failed: bool  # the last checkpoint, or a log, could not be written on some rank


class StopSignal:
    """Listens for signals while entered, and tracks when the next checkpoint is due. Used by the main thread only.

    Args:
        settings: how often to save.
        runtime: this rank.
        failed: returns whether writing in the background has failed on this rank.
        clock: returns seconds.
    """

    def __init__(
        self,
        settings: Run,
        runtime: Runtime,
        failed: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime, self._failed, self._clock = runtime, failed, clock
        self._steps = settings.save_steps
        self._seconds = None if settings.save_minutes is None else settings.save_minutes * 60
        self._signal, self._signal_time, self._saved_time = 0, 0.0, clock()
        self._pending: tuple[Tensor, dist.Work] | None = None
        self.received = threading.Event()  # set once this rank has noted a signal

    def __enter__(self) -> StopSignal:
        # Python runs its handlers between two instructions of the main thread, which may be stuck in a collective. The
        # handler in C also writes the signal's number to a pipe, which a thread can read meanwhile.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After the final checkpoint the process ends by itself, so further signals are ignored.
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_IGN if isinstance(error, Interrupted) else handler)
        signal.set_wakeup_fd(self._wakeup)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def after_step(self, done: int) -> Verdict:
        """What to do after `done` steps. Collective; a signal takes effect one step later, on all ranks at the same."""
        due = self._steps is not None and done % self._steps == 0
        if self._runtime.world_size == 1:
            stop, late, failed = self._requests()
        else:
            stop, late, failed = self._finish()
            if not stop:
                self._begin()
        return Verdict(stop, due or bool(late), bool(failed))

    def stop_requested(self) -> int:
        """The signal by which any rank has been asked to stop, or 0. Collective; waits for the slowest rank."""
        if self._runtime.world_size == 1:
            return self._requests()[0]
        stop, *_ = self._finish()
        if not stop:
            self._begin()
            stop, *_ = self._finish()
        return stop

    def saved(self) -> None:
        """Restarts the time until the next checkpoint."""
        self._saved_time = self._clock()

    def _requests(self) -> tuple[int, int, int]:
        """This rank's: number of a signal; whether a checkpoint is due by rank 0's clock; whether writing failed."""
        late = self._seconds is not None and self._clock() - self._saved_time >= self._seconds
        return self._signal, int(late and self._runtime.rank == 0), int(self._failed())

    def _begin(self) -> None:
        """Starts the all-reduce of this rank's requests."""
        requests = torch.tensor(self._requests())
        work = dist.all_reduce(requests, dist.ReduceOp.MAX, group=self._runtime.control, async_op=True)
        assert work is not None
        self._pending = requests, work

    def _finish(self) -> tuple[int, int, int]:
        """The requests of all ranks from the all-reduce under way; none if there is none."""
        if self._pending is None:
            return 0, 0, 0
        (requests, work), self._pending = self._pending, None
        work.wait()
        stop, late, failed = requests.tolist()
        return stop, late, failed

    def _listen(self) -> None:
        while number := os.read(self._read, 1)[0]:
            if number in SIGNALS:
                self._note(signal.Signals(number))

    def _note(self, received: signal.Signals) -> None:
        rank = self._runtime.rank
        if self._signal:
            if self._clock() - self._signal_time > SAME_REQUEST:
                _print(f"rank {rank}: {received.name} again, leaving at once")
                os._exit(128 + received)
            return
        self._signal, self._signal_time = int(received), self._clock()
        if rank == 0:
            _print(f"{received.name}: saving after this step, then stopping; a second signal leaves at once")
        self.received.set()


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody may be reading any more
        print(line, file=sys.stderr, flush=True)
