"""The projector's files: which items, under which names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from cm3_dist.config.command_options import run_settings
from cm3_dist.inference.projector_files import popular_items
from cm3_dist.inference.trained_model import TrainedModel, open_model
from cm3_dist.projector import main
from tests.support.refusals import refusal


@pytest.fixture(scope="module")
def opened(finished_run: Path) -> Any:
    with open_model(run_settings(finished_run, [])) as model:
        yield model


def read(folder: Path) -> tuple[np.ndarray, list[list[str]]]:
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    lines = (folder / embedding.metadata_path).read_text().splitlines()
    return np.loadtxt(folder / embedding.tensor_path, ndmin=2), [line.split("\t") for line in lines]


def test_the_most_popular_items_with_their_rows(opened: TrainedModel, tmp_path: Path) -> None:
    folder = tmp_path / "projector"
    popular_items(opened, 20).write(folder)
    vectors, (header, *labels) = read(folder)
    assert header == ["item", "training users"]
    assert len(labels) == len(vectors) == 20
    degree = opened.shard.item_degree[opened.shard.is_item]
    assert [int(label[1]) for label in labels] == sorted(degree.tolist(), reverse=True)[:20]
    rows = opened.item_ids.rows([int(label[0]) for label in labels])
    np.testing.assert_allclose(vectors, opened.rows[1].numpy()[rows], rtol=1e-5, atol=1e-6)
    popular_items(opened, 10_000, by="fused").write(folder)  # replaces the first
    vectors, (_, *labels) = read(folder)
    assert len(labels) == opened.manifest.items
    assert vectors.shape == (len(labels), 8)


def test_items_carry_names(opened: TrainedModel, tmp_path: Path) -> None:
    file = tmp_path / "titles.csv"
    file.write_text("item,title,shelf\n1007,Blue  bear,3\n1008,,4\n5,nobody,1\n")
    popular_items(opened, 10_000).write(tmp_path / "projector", file)
    _, (header, *labels) = read(tmp_path / "projector")
    assert header == ["title", "shelf", "item", "training users"]
    named = {label[2]: label[:2] for label in labels}
    assert named["1007"] == ["Blue bear", "3"]
    assert named["1008"] == ["?", "4"]
    assert named["1009"] == ["?", "?"]


def test_refusals(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(main, [str(finished_run), "--by", "sound"], capsys).startswith("error[channel.unknown]: ")
    for text, code in (("item\n1007\n", "names.no-label"), ("item,title\n1,x\n", "names.no-item")):
        file = tmp_path / "titles.csv"
        file.write_text(text)
        line = refusal(main, [str(finished_run), "--names", str(file)], capsys)
        assert line.startswith(f"error[{code}]: {file}")
    assert not (finished_run / "tensorboard/projector").exists()
