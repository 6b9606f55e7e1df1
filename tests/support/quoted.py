"""docs/troubleshooting.md quotes errors and warnings; tests that provoke one ask here whether the page has it.

A line with a code, `error[features.missing]: ...`, is known by the code. Other lines are known by their words, without
numbers and folders.
"""

from __future__ import annotations

import re

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
_CODE = re.compile(r"^error\[([\w.-]+)\]")
_NUMBER, _FOLDER = re.compile(r"(?<![\w/-])-?\d[\d.,]*(e[+-]?\d+)?"), re.compile(r"(?:[\w.-]*/)+(?=[\w.-])")


def code(line: str) -> str | None:
    """The code of a printed error."""
    found = _CODE.match(line.strip())
    return found[1] if found else None


def words(line: str) -> str:
    """The line without its code, numbers and folders."""
    return _NUMBER.sub("N", _FOLDER.sub("", _CODE.sub("error", line.strip())))


def quoted_lines() -> list[str]:
    """Errors and warnings in the code blocks of the page."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if re.match(r"(error|warning)\b", line)]


def assert_quoted(line: str) -> None:
    """Fails unless the page has this error or warning."""
    quoted = quoted_lines()
    known = code(line) in {code(other) for other in quoted} - {None} or words(line) in map(words, quoted)
    assert known, f"docs/troubleshooting.md does not quote: {line}"
