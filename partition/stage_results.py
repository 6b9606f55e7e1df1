"""Writes and reads the results of the stages of a preparation, which `partition.resume` keeps.

They are a data set, the assignment of nodes to parts, and the neighbours of the items in one modality.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from partition.cut.assign import Assignment
from partition.item_graph.graph import Nearest
from partition.relational.export import read_ids
from partition.transform.dataset import Dataset, Features


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Describes a data set in `folder`, which holds its columns, ids and feature matrices already.

    Feature matrices that are input files stay where they are.
    """
    features: dict[str, dict[str, Any]] = {}
    for name, modality in dataset.features.items():
        assert isinstance(modality.values, np.memmap)
        path = Path(str(modality.values.filename)).resolve()
        own = path.parent == folder.resolve()
        features[name] = {"file": path.name if own else str(path), "source_dim": modality.source_dim, "basis": None}
        if isinstance(modality.basis, np.memmap):
            features[name]["basis"] = Path(str(modality.basis.filename)).name
        if modality.missing is not None:
            np.save(folder / f"missing-{name}.npy", modality.missing)
    content = {
        "weighted": dataset.weight is not None,
        "name": dataset.name,
        "split_method": dataset.split_method,
        "features": features,
        "counts": dataset.counts,
        "inputs": dataset.inputs,
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def read_dataset(folder: Path) -> Dataset:
    """Reads a data set; its arrays are memory-mapped."""
    content: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    names = ["user", "item", "split", *(["weight"] if content["weighted"] else [])]
    columns = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    features = {
        name: Features(
            np.load(folder / stored["file"], mmap_mode="r", allow_pickle=False),
            stored["source_dim"],
            None if stored["basis"] is None else np.load(folder / stored["basis"], mmap_mode="r", allow_pickle=False),
            np.load(missing, allow_pickle=False) if (missing := folder / f"missing-{name}.npy").exists() else None,
        )
        for name, stored in content["features"].items()
    }
    return Dataset(
        name=content["name"],
        user_ids=read_ids(folder / "user_ids.arrow"),
        item_ids=read_ids(folder / "item_ids.arrow"),
        **columns,
        split_method=content["split_method"],
        features=features,
        counts=content["counts"],
        inputs=content["inputs"],
    )


def write_assignment(assignment: Assignment, path: Path) -> None:
    """Writes the parts of all nodes."""
    with path.open("wb") as file:
        np.savez(file, user_part=assignment.user_part, item_part=assignment.item_part)


def read_assignment(path: Path) -> Assignment:
    """Reads the parts of all nodes."""
    with np.load(path, allow_pickle=False) as file:
        return Assignment(file["user_part"], file["item_part"])


def write_neighbours(found: Nearest, path: Path) -> None:
    """Writes the neighbours of all items in one modality, and their recall."""
    with path.open("wb") as file:
        np.savez(file, neighbours=found[0], recall=np.float64(found[1]))


def read_neighbours(path: Path) -> Nearest:
    """Reads neighbours and their recall."""
    with np.load(path, allow_pickle=False) as file:
        return file["neighbours"], float(file["recall"])
