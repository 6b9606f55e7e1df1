"""A small random prepared folder, and settings to train on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cm3_dist.config.settings import Settings
from partition.cut.assign import assign_parts
from partition.folder.write import write_prepared
from partition.item_graph.graph import build_item_graph
from partition.options import CutMethod, default_weights
from partition.transform.dataset import Dataset, Features

USERS, ITEMS = 120, 60


def small_dataset(
    users: int = USERS,
    items: int = ITEMS,
    degree: int = 12,
    modalities: int = 2,
    seed: int = 0,
    spread: float = 1 / 8,
    widths: tuple[int, ...] = (12, 8, 6, 5, 7),
) -> Dataset:
    """Users like items whose number is near theirs; some nodes have no training interaction."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), degree)
    item = (user * items // users + rng.normal(0, items * spread, len(user)).astype(np.int64)) % items
    pairs = np.unique(np.stack([user, item], 1), axis=0)
    split = rng.choice(3, len(pairs), p=[0.8, 0.1, 0.1]).astype(np.int8)
    split[pairs[:, 1] == items - 1] = 2  # an item that is never trained
    split[pairs[:, 0] == users - 1] = 0
    pairs, split = pairs[pairs[:, 0] != 5], split[pairs[:, 0] != 5]  # a user without interactions
    trained = np.zeros(users, bool)
    trained[pairs[split == 0, 0]] = True
    kept = trained[pairs[:, 0]]
    pairs, split = pairs[kept], split[kept]
    place = np.stack([np.sin(np.arange(items) / items * 6), np.cos(np.arange(items) / items * 6)], 1)
    dtypes = [np.float32, np.float16, np.float64, np.float32, np.float16]
    features = {
        name: (place @ rng.standard_normal((2, width)) + 0.3 * rng.standard_normal((items, width))).astype(dtype)
        for name, width, dtype in zip(
            ["image", "text", "audio", "video", "touch"][:modalities], widths, dtypes, strict=False
        )
    }
    return Dataset(
        name="small",
        user_ids=pa.array([f"u{n}" for n in range(users)]),
        item_ids=pa.array(np.arange(items) + 1000),
        user=pairs[:, 0],
        item=pairs[:, 1],
        split=split,
        split_method="column",
        features={name: Features(values, values.shape[1]) for name, values in features.items()},
    )


def mask_features(dataset: Dataset, share: float = 0.3, seed: int = 0) -> Dataset:
    """The data set after `--missing mask`: each modality lacks a share of the items, and all lack the first one."""
    rng = np.random.default_rng(seed)
    features = {}
    for name, modality in dataset.features.items():
        missing = rng.random(len(modality.values)) < share
        missing[0] = True
        values = np.where(missing[:, None], 0, modality.values).astype(modality.values.dtype)
        features[name] = replace(modality, values=values, missing=missing)
    return replace(dataset, features=features)


def weighted_dataset(dataset: Dataset | None = None, seed: int = 1) -> Dataset:
    """A data set, by default the small one, with weights between 0.1 and 10 of all its interactions."""
    dataset = dataset or small_dataset()
    weight = 10 ** np.random.default_rng(seed).uniform(-1, 1, len(dataset.user))
    return replace(dataset, weight=weight.astype(np.float32))


def prepare_small(
    folder: Path,
    parts: int = 4,
    dataset: Dataset | None = None,
    k: int = 4,
    method: CutMethod = CutMethod.RANDOM,
    statistics: dict[str, float] | None = None,
    weighted: bool = False,
) -> Path:
    """Writes a small data set as `folder`/prepared; `weighted`: with the weights of `weighted_dataset`."""
    dataset = dataset or small_dataset()
    dataset = weighted_dataset(dataset) if weighted else dataset
    features = {name: modality.values for name, modality in dataset.features.items()}
    graph = build_item_graph(features, default_weights(list(features)), k, missing=dataset.missing)
    user, item = dataset.train()
    assignment = assign_parts(user, item, len(dataset.user_ids), len(dataset.item_ids), parts, method, seed=3)
    options = {"item_graph_k": k, "item_graph_weight": [], "cooccurrence_weight": 0.0}  # as in BuildOptions
    write_prepared(dataset, graph, assignment, folder / "prepared", options, statistics or {})
    return folder / "prepared"


def small_settings(prepared: Path, run: Path, **sections: Any) -> Settings:
    """Settings for it; keywords are sections or top-level keys."""
    base: dict[str, Any] = {
        "data": {"path": prepared},
        "run": {"dir": run},
        "train": {"epochs": 2, "batch_size": 256},
        "model": {"dim": 8},
        "evaluate": {"ks": [5, 20]},
        "machine": {"device": "cpu", "threads": 1},
    }
    for name, value in sections.items():
        base[name] = {**base.get(name, {}), **value} if isinstance(value, dict) else value
    return Settings.model_validate(base)


def untrained_item() -> Dataset:
    """The small data set with an item that has test interactions only."""
    dataset = small_dataset()
    return replace(dataset, split=np.where(dataset.item == ITEMS - 1, 2, dataset.split).astype(np.int8))


def finish_small(folder: Path, dataset: Dataset | None = None, **sections: Any) -> Path:
    """Prepares a small data set in `folder` and trains on it: a finished run."""
    from cm3_dist.distributed.runtime import distributed
    from cm3_dist.training.loop import run

    settings = small_settings(prepare_small(folder, dataset=dataset or untrained_item()), folder / "run", **sections)
    with distributed(settings.machine) as runtime:
        run(settings, runtime, resume=False)
    return settings.run.dir
