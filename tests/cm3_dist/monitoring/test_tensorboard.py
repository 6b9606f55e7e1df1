"""What TensorBoard's HParams and Custom Scalars tabs get from a run, read back as TensorBoard reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from cm3_dist.config.settings import Machine
from cm3_dist.distributed.runtime import distributed
from cm3_dist.monitoring.tensorboard import experiment
from cm3_dist.training.loop import run
from tests.support.small import prepare_small, small_settings


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    folder = tmp_path_factory.mktemp("run")
    settings = small_settings(prepare_small(folder), folder / "run", loss={"gamma": 0.4}, train={"epochs": 1})
    with distributed(Machine(device="cpu", threads=1)) as runtime:
        run(settings, runtime)
    found = EventAccumulator(str(folder / "run" / "tensorboard"))
    found.Reload()
    return found


def plugin(events: EventAccumulator, tag: str) -> Any:
    content = events.SummaryMetadata(tag).plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_hparams_hold_the_settings(events: EventAccumulator) -> None:
    started = plugin(events, "_hparams_/session_start_info").session_start_info.hparams
    assert started["loss.gamma"].number_value == 0.4
    assert started["negatives"].string_value == "in_batch"
    assert started["model.item_ids"].bool_value is False
    assert started["propagation.fanouts"].string_value == "[10]"
    assert not [name for name in started if name.startswith(("run.", "machine."))]


def test_columns_are_what_differs_and_metrics_that_exist(events: EventAccumulator, tmp_path: Path) -> None:
    one = small_settings(tmp_path, tmp_path / "one")
    two = small_settings(tmp_path, tmp_path / "two", loss={"gamma": 0.4}, train={"seed": 7}, machine={"threads": 2})
    content = experiment([one, two]).value[0].metadata.plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(content).experiment
    assert {info.name for info in found.hparam_infos} == {"loss.gamma", "train.seed"}
    tags = [info.name.tag for info in found.metric_infos]
    assert tags[0] == "metrics-test/recall@20"
    assert set(tags) <= set(events.Tags()["scalars"])


def test_the_layout_groups_curves_that_exist(events: EventAccumulator, tmp_path: Path) -> None:
    (event,) = events.Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in found.category] == ["Loss", "Metrics", "Time and memory"]
    known = set(events.Tags()["scalars"])
    for category in found.category:
        for chart in category.chart:
            tags = set(chart.multiline.tag)
            missing = tags - known - {"time/replay", "memory/cuda_peak_mib"}  # on a GPU only
            assert not missing, chart.title
    assert set(found.category[0].chart[0].multiline.tag) == {tag for tag in known if tag.startswith("loss/")}
