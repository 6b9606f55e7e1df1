"""The result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is the command or advice that goes with a FAIL or a note."""

    check: str
    state: State
    message: str
    fix: str = ""
