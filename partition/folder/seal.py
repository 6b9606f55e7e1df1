"""The manifest's own digest: a field in it that vouches for every other byte of the file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

FIELD = "checksum"
_BLANK = "0" * 64
_VALUE = re.compile(rb'"checksum": "([0-9a-f]{64})"')


def sealed(content: Mapping[str, Any]) -> bytes:
    """JSON with the digest as its first field: sha256 of the bytes with zeros in the digest's place."""
    rest = {name: value for name, value in content.items() if name != FIELD}
    blank = (json.dumps({FIELD: _BLANK, **rest}, indent=1) + "\n").encode()
    return blank.replace(_BLANK.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


def is_whole(data: bytes) -> bool:
    """Whether these are bytes that `sealed` made."""
    found = _VALUE.search(data)
    if found is None:
        return False
    blank = data[: found.start(1)] + _BLANK.encode() + data[found.end(1) :]
    return hashlib.sha256(blank).hexdigest().encode() == found[1]
