"""What became of the items: lines for the user, and the JSON file beside the rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from partition.extract.encoding import Block
from partition.extract.items import Items
from partition.extract.reasons import printable
from partition.extract.request import Request
from partition.files import write_text

_LISTED = 100  # unused files


@dataclass
class Extracted:
    """What was written, and what was not encoded."""

    items: int
    dim: int = 0
    empty: list[Any] = field(default_factory=list)  # ids of items without text and image
    failed: list[tuple[Any, str]] = field(default_factory=list)  # ids of other items without a row, and why
    partly: list[tuple[Any, str]] = field(default_factory=list)  # those that were encoded without a part, and why
    unused: list[Path] = field(default_factory=list)  # files in the folder of images
    files: int = 0  # in that folder
    numbers: list[str] = field(default_factory=list)  # text columns that hold numbers

    @property
    def missing(self) -> int:
        """Items without a row."""
        return len(self.empty) + len(self.failed)

    def add(self, ids: pa.Array, block: Block) -> None:
        """Counts the items of a block."""
        for item, given, reason in zip(ids.to_pylist(), block.given.tolist(), block.reasons.tolist(), strict=True):
            if given and reason:
                self.partly.append((item, reason))
            elif not given and reason:
                self.failed.append((item, reason))
            elif not given:
                self.empty.append(item)

    def report(self, request: Request) -> list[str]:
        """Lines for the user."""
        missing = f"{self.missing:,} missing, filled with {request.fill}" if self.missing else "none missing"
        lines = [f"{request.output}: {self.items:,} items, {self.dim} wide; {missing}"]
        if self.empty:
            lines.append(f"  {len(self.empty):,} without {_sought(request)}; first: item {self.empty[0]!r}")
        for said, found in (("not encoded", self.failed), ("encoded without a part", self.partly)):
            if found:
                item, reason = found[0]
                lines.append(f"  {len(found):,} {said}; first: item {item!r}: {reason}")
        if self.unused:
            first = printable(self.unused[0].name)
            lines.append(f"  {len(self.unused):,} of {self.files:,} files in {request.images} not used; first: {first}")
        if self.numbers:
            lines.append(f"  numbers used as texts: {', '.join(self.numbers)}")
        if self.failed or self.partly or self.unused:
            lines.append(f"  all are listed in {request.beside}")
        features = f"--features {request.modality}={request.output}"
        if self.missing and request.output.suffix == ".parquet":  # a .npy file has no column `missing`
            features += f" --missing {request.modality}=mask"
        return [*lines, f"Next: python -m partition build --input LOG {features} --parts 4 --output PREPARED"]

    def write(self, request: Request, made_by: dict[str, Any]) -> None:
        """Writes the JSON file."""
        sought = _sought(request)
        about = {
            "items": self.items,
            "modality": request.modality,
            "dim": self.dim,
            "dtype": request.dtype,
            "text": request.text,
            "images": request.images,
            **made_by,
            "fill": request.fill,
            "missing": [{"item": item, "reason": f"no {sought}"} for item in self.empty] + _listed(self.failed),
            "partly": _listed(self.partly),
            "unused_files": {
                "count": len(self.unused),
                "first": [printable(path.name) for path in self.unused[:_LISTED]],
            },
        }
        write_text(request.beside, json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def of(items: Items) -> Extracted:
    """A report to which blocks can be added."""
    folder = items.folder
    unused, files = ([], 0) if folder is None else (folder.unused, folder.entries)
    return Extracted(len(items.ids), unused=unused, files=files, numbers=items.numbers)


def _sought(request: Request) -> str:
    return " or ".join([*(["text"] if request.text else []), *(["image"] if request.images else [])])


def _listed(found: list[tuple[Any, str]]) -> list[dict[str, Any]]:
    return [{"item": item, "reason": reason} for item, reason in found]
