"""The files of a run folder that grow while it trains: steps.jsonl, evaluations.jsonl and TensorBoard's events.

A write that fails (a full disk, a folder that was removed) is remembered until `check`: only rank 0 writes, and all
ranks have to end together.
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
from partition.files import atomic_file

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

BOARD = "tensorboard"
_HINT = "; checkpoints are kept as they are: fix it, then start again with --resume"


class EventLog:
    """Writes the logs of a run, on rank 0. Steps count from 0; what is measured after a step is filed under it.

    Args:
        folder: of the run.
        resumed_at: steps done before this session; the lines of later ones are dropped, because they are redone.
        evaluated_at: steps done at the last evaluation that counts; later ones and the test are redone too.

    Raises:
        InputError: a file is damaged or cannot be written.
    """

    def __init__(self, folder: Path, resumed_at: int, evaluated_at: int) -> None:
        self._folder, self._error, self._closed = folder, "", False
        with self._writing(folder):
            keep_lines(folder / STEPS, lambda line: line["step"] < resumed_at)
            keep_lines(folder / EVALUATIONS, lambda line: line["step"] < evaluated_at and line["split"] == "validation")
            logging.getLogger("tensorboard").setLevel(logging.ERROR)
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed on rank 0

            _silence_writer_thread()
            # TensorBoard hides the points of steps that are redone.
            self._board = SummaryWriter(str(folder / BOARD), purge_step=resumed_at or None)
            self._steps = (folder / STEPS).open("a", encoding="utf-8")
            self._evaluations = (folder / EVALUATIONS).open("a", encoding="utf-8")
        self.check()

    def step(self, line: dict[str, Any]) -> None:
        """Writes a line of steps.jsonl."""
        with self._writing(self._folder / STEPS):
            self._steps.write(json.dumps(line) + "\n")

    def evaluation(self, line: dict[str, Any]) -> None:
        """Writes a line of evaluations.jsonl."""
        with self._writing(self._folder / EVALUATIONS):
            self._evaluations.write(json.dumps(line) + "\n")
            self._evaluations.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes values by TensorBoard tag."""
        with self._writing(self._folder / BOARD):
            for tag, value in values.items():
                self._board.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes Markdown to TensorBoard's text tab."""
        with self._writing(self._folder / BOARD):
            self._board.add_text(tag, text, step)

    def charts(self, charts: dict[str, Any], session: Summary) -> None:
        """Writes the layout of the Custom Scalars tab, and the run's row in the HParams tab."""
        with self._writing(self._folder / BOARD):
            self._board.add_custom_scalars(charts)
            self._board.file_writer.add_summary(session)

    def flush(self) -> None:
        """Makes the lines of steps.jsonl visible to others."""
        with self._writing(self._folder / STEPS):
            self._steps.flush()
            if os.fstat(self._steps.fileno()).st_nlink == 0:
                raise FileNotFoundError(0, "it was removed while the run wrote to it")

    def flush_board(self) -> None:
        """Makes TensorBoard's events visible to it."""
        with self._writing(self._folder / BOARD):
            self._board.flush()

    def failed(self) -> bool:
        """Whether something could not be written."""
        return bool(self._error)

    def check(self) -> None:
        """Raises InputError with file and reason if something could not be written."""
        if self._error:
            self.close()
            raise InputError(self._error, "run.unwritable")

    def close(self) -> None:
        """Closes the files; later calls do nothing. `check` reports what fails."""
        if self._closed:
            return
        self._closed = True
        for name, path in (("_steps", STEPS), ("_evaluations", EVALUATIONS), ("_board", BOARD)):
            if hasattr(self, name):  # not if the constructor failed before
                with self._writing(self._folder / path):
                    getattr(self, name).close()

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Remembers the first OSError of all blocks; what fails after it is ignored."""
        try:
            yield
        except OSError as error:
            self._error = self._error or str(cannot_write(path, error, _HINT))
        except ValueError:
            if not self._error:  # after an error, `check` has closed the files
                raise


def _silence_writer_thread() -> None:
    """Hides tracebacks of failed writes in TensorBoard's thread, because its next call raises them again."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        if not (type(failure.thread).__name__ == "_AsyncWriterThread" and isinstance(failure.exc_value, OSError)):
            before(failure)

    if getattr(before, "__module__", "") != __name__:
        threading.excepthook = hook


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drops the JSON lines that are not wanted, and an incomplete last line: a resumed run writes them again.

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
                raise InputError(
                    f"{path}:{number}: not a line that this program wrote; fix or delete it", "run.damaged-log"
                ) from None
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"".join(kept))
