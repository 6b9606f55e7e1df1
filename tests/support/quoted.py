"""docs/troubleshooting.md quotes lines of the program: tests that provoke one ask here whether it stands there."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
_CODE = re.compile(r"^error\[[\w.-]+\]")
_NUMBER, _FOLDER = re.compile(r"(?<![\w/-])-?\d[\d.,]*(e[+-]?\d+)?"), re.compile(r"(?:[\w.-]*/)+(?=[\w.-])")


def masked(line: str) -> str:
    """The line without what differs from case to case: folders, and numbers, of which the kind of error is not one."""
    return _NUMBER.sub("N", _FOLDER.sub("", _CODE.sub("error", line.strip())))


def assert_quoted(line: str) -> None:
    """Fails unless the page has this line in a code block, whatever its numbers and folders."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    lines = [quoted for block in blocks for quoted in block.splitlines()]
    assert masked(line) in map(masked, lines), f"docs/troubleshooting.md does not quote: {line}"
