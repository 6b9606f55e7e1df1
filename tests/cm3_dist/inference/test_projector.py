"""The projector's files: which items, under which names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from cm3_dist.config.command_options import run_settings
from cm3_dist.distributed.runtime import distributed
from cm3_dist.inference.id_map import OwnIds
from cm3_dist.inference.trained_model import FinishedRun
from cm3_dist.projector import project
from partition.errors import InputError


@pytest.fixture(scope="module")
def opened(finished_run: Path) -> Any:
    settings = run_settings(finished_run, [])
    with distributed(settings.machine) as runtime:
        yield FinishedRun(settings, runtime)


def read(folder: Path) -> tuple[np.ndarray, list[list[str]]]:
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    lines = (folder / embedding.metadata_path).read_text().splitlines()
    return np.loadtxt(folder / embedding.tensor_path, ndmin=2), [line.split("\t") for line in lines]


def test_the_most_popular_items_with_their_rows(opened: FinishedRun) -> None:
    folder, count = project(opened, 20)
    vectors, (header, *labels) = read(folder)
    assert header == ["item", "training users"]
    assert count == len(labels) == len(vectors) == 20
    degree = opened.shard.item_degree[opened.shard.is_item]
    assert [int(label[1]) for label in labels] == sorted(degree.tolist(), reverse=True)[:20]
    rows = OwnIds(opened.shard.root, opened.manifest, "item").rows([int(label[0]) for label in labels])
    np.testing.assert_allclose(vectors, opened.rows[1].numpy()[rows], rtol=1e-5, atol=1e-6)
    folder, count = project(opened, 10_000, by="fused")  # replaces the first
    vectors, (_, *labels) = read(folder)
    assert count == len(labels) == opened.manifest.items
    assert vectors.shape == (count, 8)


def test_items_carry_names(opened: FinishedRun, tmp_path: Path) -> None:
    file = tmp_path / "titles.csv"
    file.write_text("item,title,shelf\n1007,Blue  bear,3\n1008,,4\n5,nobody,1\n")
    folder, _ = project(opened, 10_000, file)
    _, (header, *labels) = read(folder)
    assert header == ["title", "shelf", "item", "training users"]
    named = {label[2]: label[:2] for label in labels}
    assert named["1007"] == ["Blue bear", "3"]
    assert named["1008"] == ["?", "4"]
    assert named["1009"] == ["?", "?"]


def test_refusals(opened: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--by sound: there are all, image, text, fused"):
        project(opened, 20, by="sound")
    for text, message in (("item\n1007\n", "nothing to label"), ("item,title\n1,x\n", "names none of the items shown")):
        file = tmp_path / "titles.csv"
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            project(opened, 20, file)
