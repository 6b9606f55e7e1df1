"""What came of one trial, in which something else than a rank fails."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Trial:
    """Something that could not be done as asked, and what came of it."""

    kind: str
    said: str = ""
    wrong: list[str] = field(default_factory=list)
    tried: bool = True

    @property
    def verdict(self) -> str:
        """In words."""
        return "; ".join(self.wrong) or "survived" if self.tried else "not tried"
