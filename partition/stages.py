"""Reports the stages of a preparation: one line per stage, and their times for the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class Stages:
    """Prints one line per stage; `statistics` collects the seconds per stage and other figures for the manifest."""

    def __init__(self, quiet: bool = False) -> None:
        self.statistics: dict[str, float] = {}
        self._console = Console(highlight=False, quiet=quiet)

    @contextmanager
    def __call__(self, stage: str, kept: bool = False) -> Iterator[Callable[[str], None]]:
        """Times a stage. The caller passes what the line says to the function it gets.

        Args:
            stage: name.
            kept: the result is from an earlier run, whose time is not overwritten.
        """
        texts: list[str] = []
        began = time.perf_counter()
        yield texts.append
        seconds = time.perf_counter() - began
        if not kept:
            self.statistics[f"seconds_{stage.replace(' ', '_')}"] = round(seconds, 3)
        duration = "from an earlier run" if kept else f"{seconds:.1f} s"
        self._console.print(f"{stage:<10}  {escape('; '.join(texts))}  [dim]{duration}[/dim]", soft_wrap=True)

    def note(self, text: str) -> None:
        """Prints a line that belongs to no stage; nothing if it is empty."""
        if text:
            self._console.print(f"{'':<10}  {escape(text)}", soft_wrap=True)
