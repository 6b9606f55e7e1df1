"""Heartbeats: when a collective fails, ranks read each other's last heartbeat and report which rank died or hangs.

A failed collective only says that a connection broke, and a rank that gives up breaks the connections of the others in
turn. So every rank writes a heartbeat per second to the store through which the ranks found each other, and a rank that
gives up writes its reason. A rank that gave no reason and whose heartbeat has stopped is the one that was lost.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.distributed as dist

from cm3_dist.errors import Interrupted, LostRankError

INTERVAL = 1.0  # seconds between two heartbeats
SILENCE = 5.0  # seconds without a heartbeat after which a rank counts as lost
_POLL = INTERVAL / 4  # seconds between two looks at the others' heartbeats
_CONNECTION_ERROR = re.compile(
    r"gloo|NCCL|DistBackendError|DistNetworkError|Connection (closed|reset|refused)|Broken pipe|imed out"
)
_LOST_CONNECTION = "lost connection"  # the reason of a rank that gave up only because another one is missing


@dataclass(frozen=True)
class _Entry:
    """What a rank has written to the store."""

    beat: int = 0  # number of its last heartbeat
    reason: str = ""  # why it gave up, if it did


class Heartbeat:
    """Writes this rank's heartbeats, and reads those of the others when a collective fails.

    Args:
        store: a client of its own for the ranks' store, because a client that waits for a key blocks all other calls.
        rank: this rank.
        world_size: number of ranks.
        timeout: seconds after which a collective fails; used in messages.
        clock: returns seconds.
        sleep: waits for that many seconds.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        timeout: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = dist.PrefixStore("heartbeat", store)
        self._rank, self._timeout = rank, timeout
        self._others = [other for other in range(world_size) if other != rank]
        self._clock, self._sleep = clock, sleep
        self._number, self._reason = 0, ""
        self._writing, self._stopped = threading.Lock(), threading.Event()
        self.beat()

    def start(self) -> None:
        """Starts the thread that writes a heartbeat per INTERVAL."""
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """Stops the thread."""
        self._stopped.set()

    def beat(self) -> None:
        """Writes one heartbeat."""
        with self._writing:
            self._number += 1
            self._store.set(str(self._rank), f"{self._number} {self._reason}")

    def give_up(self, error: BaseException) -> None:
        """Writes why this rank ends; if `error` is a connection error, finds out which rank was lost.

        Raises:
            LostRankError: names the lost rank.
        """
        if isinstance(error, Interrupted | LostRankError):
            return
        text = " ".join(str(error).split()) or type(error).__name__
        if not (isinstance(error, RuntimeError) and _CONNECTION_ERROR.search(f"{type(error).__name__}: {text}")):
            self._give_reason(f"{type(error).__name__}: {text[:300]}")
            return
        self._give_reason(_LOST_CONNECTION)
        with _sigterm_ignored():
            reason = self._lost_rank()
        raise LostRankError(reason, self._is_reporter()) from error

    def _lost_rank(self) -> str:
        """Describes the lost rank; returns after SILENCE at most."""
        deadline = self._clock() + SILENCE
        try:
            first = latest = {rank: self._read(rank) for rank in self._others}
            while self._clock() < deadline and not all(entry.reason for entry in latest.values()):
                self._sleep(_POLL)
                latest = {rank: self._read(rank) for rank in self._others}
        except (RuntimeError, ValueError):
            return "the process that holds the ranks' store (rank 0 or torchrun) has ended or cannot be reached"
        failed = [rank for rank, entry in latest.items() if entry.reason not in ("", _LOST_CONNECTION)]
        quiet = [rank for rank, entry in latest.items() if not entry.reason and entry.beat == first[rank].beat]
        stuck = [rank for rank, entry in latest.items() if not entry.reason and entry.beat != first[rank].beat]
        findings = []
        if failed:
            findings.append(f"rank {failed[0]} ended: {latest[failed[0]].reason}")
        if quiet:
            findings.append(f"{_name(quiet)} ended or stopped responding: no heartbeat for more than {SILENCE:.0f} s")
        if stuck:
            findings.append(
                f"{_name(stuck)} kept the others waiting for machine.timeout={self._timeout} s, still alive"
            )
        return "; ".join(findings) or "the ranks lost their connections, although all of them are alive"

    def _is_reporter(self) -> bool:
        """Whether this is the first of the ranks that lost a connection."""
        try:
            return all(self._read(rank).reason != _LOST_CONNECTION for rank in range(self._rank))
        except (RuntimeError, ValueError):
            return True

    def _read(self, rank: int) -> _Entry:
        if not self._store.check([str(rank)]):
            return _Entry()
        number, _, reason = self._store.get(str(rank)).decode(errors="replace").partition(" ")
        return _Entry(int(number), reason)

    def _give_reason(self, reason: str) -> None:
        self._reason = reason
        with contextlib.suppress(RuntimeError):
            self.beat()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self.beat()
            except RuntimeError:
                return  # the store is gone; the next collective fails


@contextlib.contextmanager
def _sigterm_ignored() -> Iterator[None]:
    """Ignores SIGTERM: torchrun sends it as soon as one rank ends, and the lost rank has to be named first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _name(ranks: list[int]) -> str:
    numbers = ", ".join(map(str, ranks))
    return f"ranks {numbers}" if len(ranks) > 1 else f"rank {numbers}"
