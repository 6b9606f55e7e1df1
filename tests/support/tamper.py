"""Changing a prepared folder so that nothing but its meaning is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from partition.errors import InputError
from partition.files import sha256
from partition.folder import layout
from partition.folder.manifest import Manifest, Part, cut_statistics, expected_sums, read_manifest
from partition.folder.verify import verify
from partition.transform.dataset import TRAIN
from tests.support.small import prepare_small, small_dataset

PART = 2  # the part that is tampered with


def prepare_with_idle_nodes(folder: Path) -> Path:
    """A small prepared folder in which a user and some items have no training interaction."""
    dataset = small_dataset()
    kept = ~np.isin(dataset.item, [7, 21, 40]) | (dataset.split != TRAIN)
    columns = {name: getattr(dataset, name)[kept] for name in ("user", "item", "split")}
    root = prepare_small(folder, dataset=replace(dataset, **columns))
    parts = read_manifest(root).parts
    others = [part for number, part in enumerate(parts) if number != PART]
    assert any(part.active_users < part.users for part in others)
    assert any(part.active_items < part.items for part in others)
    return root


def part_file(root: Path, name: str) -> Path:
    return layout.part_dir(root, PART) / name


def change_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads((root / layout.MANIFEST).read_text())
    change(tree)
    accept_manifest(root, tree)


def accept_manifest(root: Path, tree: Any) -> None:
    """Writes any manifest, with the SHA256SUMS that belongs to it."""
    path = root / layout.MANIFEST
    path.write_text(json.dumps(tree))
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError:
        (root / layout.SUMS).write_text(f"{sha256(path)}  {layout.MANIFEST}\n")
    else:
        (root / layout.SUMS).write_text(expected_sums(path.read_bytes(), manifest))


def accept_file(root: Path, path: Path) -> None:
    """Puts one changed file's digest and size into the manifest."""

    def change(tree: dict[str, Any]) -> None:
        part = tree["parts"][int(path.parent.name.removeprefix("part-"))]
        part["digests"][path.name], part["bytes"][path.name] = sha256(path), path.stat().st_size

    change_manifest(root, change)


def accept_bytes(root: Path, **sizes: int) -> None:
    """Puts the tampered part's digests into the manifest, and changes its sizes by so much."""

    def change(tree: dict[str, Any]) -> None:
        part = tree["parts"][PART]
        files = list(layout.part_dir(root, PART).iterdir())
        part["digests"] = {path.name: sha256(path) for path in files}
        part["bytes"] = {path.name: path.stat().st_size for path in files}
        for name, by in sizes.items():
            part[name] += by
            if name in tree:
                tree[name] += by
        parts = [Part.model_validate(part) for part in tree["parts"]]
        tree["statistics"].update(cut_statistics(parts))

    change_manifest(root, change)


def refused(root: Path, code: str | None = None) -> str:
    """The line with which `verify` refuses a folder; `code` is that of the error, if given."""
    with pytest.raises(InputError) as error:
        verify(root)
    assert "\n" not in str(error.value)
    assert error.value.code == code or (code is None and error.value.code)
    return str(error.value)
