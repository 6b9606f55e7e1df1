"""What TensorBoard's HParams and Custom Scalars tabs get from a run, read back as TensorBoard reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from cm3_dist.config import Machine
from cm3_dist.runtime import distributed
from cm3_dist.train import run
from tests.small import prepare_small, small_settings


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


def test_hparams_hold_the_settings_and_metrics_that_exist(events: EventAccumulator) -> None:
    started = plugin(events, "_hparams_/session_start_info").session_start_info.hparams
    assert started["loss.gamma"].number_value == 0.4
    assert started["negatives"].string_value == "in_batch"
    assert started["model.item_ids"].bool_value is False
    assert started["propagation.fanouts"].string_value == "[10]"
    assert not [name for name in started if name.startswith(("run.", "machine."))]
    experiment = plugin(events, "_hparams_/experiment").experiment
    tags = [info.name.tag for info in experiment.metric_infos]
    assert tags[0] == "metrics-test/recall@20"
    assert set(tags) <= set(events.Tags()["scalars"])
    assert {info.name for info in experiment.hparam_infos} == set(started)


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
