"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `mend` is the command, or the advice, that goes with a FAIL or a note."""

    check: str
    state: State
    said: str
    mend: str = ""
