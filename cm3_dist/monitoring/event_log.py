"""The files of a run folder that grow while it trains: steps.jsonl, evaluations.jsonl, TensorBoard's events.

What cannot be written (a full disk, a folder that was removed) is kept until somebody asks with `check`, because only
rank 0 writes, and all ranks are to end of it together.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3_dist.config.run_files import EVALUATIONS, STEPS, cannot_write
from cm3_dist.errors import InputError

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

BOARD = "tensorboard"
_HINT = "; checkpoints are kept as they are: mend it, then start again with --resume"


class RunLog:
    """Rank 0's. Steps count from 0; what is measured after a step is filed under it.

    Args:
        folder: of the run.
        resumed_at: steps done before this session; later ones are redone, and their lines are dropped.
        evaluated_at: steps done at the last evaluation that counts; later ones and the test are redone likewise.

    Raises:
        InputError: a file is damaged or cannot be written.
    """

    def __init__(self, folder: Path, resumed_at: int, evaluated_at: int) -> None:
        self._folder, self._error, self._closed = folder, "", False
        with self._writing(folder):
            keep_lines(folder / STEPS, lambda line: line["step"] < resumed_at)
            keep_lines(folder / EVALUATIONS, lambda line: line["step"] < evaluated_at and line["split"] == "validation")
            logging.getLogger("tensorboard").setLevel(logging.ERROR)
            from torch.utils.tensorboard import SummaryWriter  # slow to import; only here

            _keep_quiet()
            # A resumed run redoes the steps after its checkpoint; TensorBoard hides their earlier points.
            self._board = SummaryWriter(str(folder / BOARD), purge_step=resumed_at or None)
            self._steps = (folder / STEPS).open("a", encoding="utf-8")
            self._evaluations = (folder / EVALUATIONS).open("a", encoding="utf-8")
        self.check()

    def step(self, line: dict[str, Any]) -> None:
        """A line of steps.jsonl."""
        with self._writing(self._folder / STEPS):
            self._steps.write(json.dumps(line) + "\n")

    def evaluation(self, line: dict[str, Any]) -> None:
        """A line of evaluations.jsonl."""
        with self._writing(self._folder / EVALUATIONS):
            self._evaluations.write(json.dumps(line) + "\n")
            self._evaluations.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values by tag."""
        with self._writing(self._folder / BOARD):
            for tag, value in values.items():
                self._board.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""
        with self._writing(self._folder / BOARD):
            self._board.add_text(tag, text, step)

    def layout(self, charts: dict[str, Any], session: Summary) -> None:
        """TensorBoard's own charts and the run's line in its table of settings."""
        with self._writing(self._folder / BOARD):
            self._board.add_custom_scalars(charts)
            self._board.file_writer.add_summary(session)

    def flush(self) -> None:
        """Makes the lines so far visible to others."""
        with self._writing(self._folder / STEPS):
            self._steps.flush()
            if os.fstat(self._steps.fileno()).st_nlink == 0:
                raise FileNotFoundError(0, "it was removed while the run wrote to it")

    def flush_board(self) -> None:
        """Makes what TensorBoard has got so far visible to it."""
        with self._writing(self._folder / BOARD):
            self._board.flush()

    def failed(self) -> bool:
        """Whether something could not be written."""
        return bool(self._error)

    def check(self) -> None:
        """Raises InputError when something could not be written; says what and why."""
        if self._error:
            self.close()
            raise InputError(self._error)

    def close(self) -> None:
        """Closes the files, once; what goes wrong is there for `check`."""
        if self._closed:
            return
        self._closed = True
        for name in ("_steps", "_evaluations", "_board"):
            file = getattr(self, name, None)
            if file is not None:
                with self._writing(self._folder / BOARD if name == "_board" else Path(file.name), again=True):
                    file.close()

    @contextlib.contextmanager
    def _writing(self, path: Path, *, again: bool = False) -> Iterator[None]:
        """Keeps the first failure. After it, nothing more is tried except where `again` says so."""
        if self._error and not again:
            with contextlib.suppress(OSError, ValueError):
                yield
            return
        try:
            yield
        except OSError as error:
            self._error = self._error or str(cannot_write(path, error, _HINT))


def _keep_quiet() -> None:
    """A failure in TensorBoard's thread is raised by its next call; the traceback it prints as well tells no more."""
    before = threading.excepthook

    def hook(told: threading.ExceptHookArgs) -> None:
        if not (type(told.thread).__name__ == "_AsyncWriterThread" and isinstance(told.exc_value, OSError)):
            before(told)

    if getattr(before, "__module__", "") != __name__:
        threading.excepthook = hook


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drops the JSON lines that are not wanted, and a torn last line: a resumed run redoes them.

    Raises:
        InputError: a line before the last is damaged.
    """
    if not path.exists():
        return
    kept = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            if wanted(json.loads(line)):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(f"{path}:{number}: not a line that this program wrote; mend or delete it") from None
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.rename(path)
