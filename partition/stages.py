"""Reports the stages of a preparation: a line each, and their times for the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class Stages:
    """One line per stage, and the seconds each took."""

    def __init__(self, quiet: bool = False) -> None:
        self.statistics: dict[str, float] = {}
        self._console = Console(highlight=False, quiet=quiet)

    @contextmanager
    def __call__(self, stage: str, kept: bool = False) -> Iterator[Callable[[str], None]]:
        """Times a stage, whose line is what the caller hands to the function it gets.

        `kept`: its result is there from an earlier run, whose time stands.
        """
        said: list[str] = []
        began = time.perf_counter()
        yield said.append
        seconds = time.perf_counter() - began
        if not kept:
            self.statistics[f"seconds_{stage.replace(' ', '_')}"] = round(seconds, 3)
        time_of = "from an earlier run" if kept else f"{seconds:.1f} s"
        self._console.print(f"{stage:<10}  {escape('; '.join(said))}  [dim]{time_of}[/dim]", soft_wrap=True)
