"""How a command refuses: one line on stderr, exit code 2."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cm3_dist.distributed.entry_point import entry_point


def refusal(main: Callable[[], None], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command; returns the line it printed to stderr."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command", *arguments])
        with pytest.raises(SystemExit) as end:
            entry_point(main)()
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert re.match(r"error(\[[\w.-]+\])?: ", error)
    assert "\n" not in error
    return error
