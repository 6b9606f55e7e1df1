"""Which rank is to blame when a collective fails: a dead or hung one, named by those who wait for it.

A failed collective says that some connection broke, never whose rank was at its other end; and a rank that gives up
takes the next one along. So every rank gives a sign of life each second, in the store through which the ranks found
each other, and one that gives up leaves a note why. Who waits in vain looks there: whoever left no note is missing.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from cm3_dist.errors import Interrupted, LostRankError

BEAT = 1.0  # seconds between two signs of life
SILENCE = 5.0  # seconds without one: the process has ended or stands still
_LOST = re.compile(
    r"gloo|NCCL|DistBackendError|DistNetworkError|Connection (closed|reset|refused)|Broken pipe|imed out"
)
_WAITS = "waits"


class Vigil:
    """Gives this rank's signs of life, from its making on, in a thread.

    Args:
        store: what the ranks found each other through.
        rank: this one.
        world_size: of all.
        timeout: seconds that a collective waits, for messages.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: int) -> None:
        # A client of its own: one that waits for a key lets nobody else through.
        self._store = dist.PrefixStore("vigil", store.clone())
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._note = ""
        self._ended = threading.Event()
        self._beat(0)
        threading.Thread(target=self._beats, name="vigil", daemon=True).start()

    def end(self) -> None:
        """No more signs of life, in good order."""
        self._ended.set()

    def give_up(self, error: BaseException) -> None:
        """Leaves a note for the others; when `error` is of a connection, finds out who is missing.

        Raises:
            LostRankError: names the rank.
        """
        if isinstance(error, Interrupted | LostRankError):
            return
        text = " ".join(str(error).split()) or type(error).__name__
        if not (isinstance(error, RuntimeError) and _LOST.search(f"{type(error).__name__}: {text}")):
            self._leave(f"{type(error).__name__}: {text[:300]}")
            return
        self._leave(_WAITS)
        with _not_hurried():
            found = self._missing()
        raise LostRankError(found, self._speaks()) from error

    def _missing(self) -> str:
        """Who is missing and what is known of it, after SILENCE at most."""
        began, seen = time.monotonic(), {}
        try:
            seen = {rank: self._look(rank) for rank in self._others()}
            while time.monotonic() < began + SILENCE:
                time.sleep(BEAT / 4)
                now = {rank: self._look(rank) for rank in self._others()}
                if all(note for _, note in now.values()):
                    break
        except (RuntimeError, ValueError):  # the store is gone, and with it whoever keeps it
            return "the rank that keeps the ranks' store, rank 0 or torchrun's, has ended or is out of reach"
        fell = [f"rank {rank} ended: {note}" for rank, (_, note) in now.items() if note not in ("", _WAITS)]
        silent = [rank for rank, (beat, note) in now.items() if not note and beat == seen[rank][0]]
        stuck = [rank for rank, (beat, note) in now.items() if not note and beat != seen[rank][0]]
        told = [*fell[:1]]
        if silent:
            told.append(f"{_ranks(silent)} ended or stands still: no sign of life for {SILENCE:.0f} s and more")
        if stuck:
            told.append(f"{_ranks(stuck)} lives, but has kept the others waiting for machine.timeout={self._timeout} s")
        return "; ".join(told) or "the ranks have lost touch with each other, though all of them live"

    def _speaks(self) -> bool:
        """Whether this rank is the first of those who wait, as far as it can tell."""
        try:
            return all(self._look(rank)[1] != _WAITS for rank in range(self._rank))
        except (RuntimeError, ValueError):
            return True

    def _look(self, rank: int) -> tuple[int, str]:
        """The last sign of life of a rank, and its note; 0 when it never came."""
        if not self._store.check([str(rank)]):
            return 0, ""
        beat, _, note = self._store.get(str(rank)).decode(errors="replace").partition(" ")
        return int(beat), note

    def _others(self) -> Iterator[int]:
        return (rank for rank in range(self._world_size) if rank != self._rank)

    def _leave(self, note: str) -> None:
        self._note = note
        with contextlib.suppress(RuntimeError):
            self._beat(0)

    def _beat(self, number: int) -> None:
        self._store.set(str(self._rank), f"{number} {self._note}")

    def _beats(self) -> None:
        number = 0
        while not self._ended.wait(BEAT):
            number += 1
            try:
                self._beat(number)
            except RuntimeError:
                return  # the store is gone; a collective will tell


@contextlib.contextmanager
def _not_hurried() -> Iterator[None]:
    """As soon as one rank has ended, torchrun ends all: not before it is said which one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
