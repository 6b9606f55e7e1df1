from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from cm3_dist.config.settings import Settings
from cm3_dist.errors import NotFiniteError
from cm3_dist.monitoring.console import Console
from cm3_dist.monitoring.event_log import keep_lines
from cm3_dist.monitoring.monitor import Monitor
from cm3_dist.monitoring.nonfinite import LOSSES
from cm3_dist.monitoring.phase_timer import PhaseTimer
from cm3_dist.monitoring.summary import print_result
from cm3_dist.training.run_dir import open_run_folder, refuse_taken, write_result
from partition.errors import InputError

STEPS = 5  # an epoch


def settings(folder: Path, log_every: int = 1) -> Settings:
    return Settings.model_validate({"run": {"dir": folder, "log_every": log_every}, "train": {"epochs": 3}})


def start(
    folder: Path, *, log_every: int = 1, resumed_at: int = 0, evaluated_at: int | None = None, rank: int = 0
) -> Monitor:
    folder.mkdir(exist_ok=True)
    chosen = settings(folder, log_every)
    done = {"resumed_at": resumed_at, "evaluated_at": resumed_at if evaluated_at is None else evaluated_at}
    return Monitor(folder, chosen, rank, plan="a plan", steps_per_epoch=STEPS, **done)


def values(step: int, offset: float = 0.0) -> torch.Tensor:
    """Loss terms and gradient norms of a step, such that every one of them is different."""
    return torch.cat([torch.arange(6) + 10.0 * step + offset, torch.tensor([-1.0])])


def train(monitor: Monitor, first: int, last: int, offset: float = 0.0) -> None:
    """Steps [first, last), with an evaluation after every epoch."""
    for step in range(first, last):
        epoch, within = divmod(step, STEPS)
        if step == first or within == 0:
            monitor.begin_epoch(epoch, within)
        phases = {"sample": 0.25, "forward": 0.25}
        monitor.step(step, epoch, 100, values(step, offset), {"graph/input_share": 0.5}, phases)
        if within == STEPS - 1:
            monitor.end_epoch()
            monitor.evaluation(step + 1, epoch, "validation", {"recall@20": step / 100 + offset})
            monitor.scalars(step + 1, {"time/evaluate": 2.0})


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_every_step_is_a_line_and_a_point(tmp_path: Path) -> None:
    with start(tmp_path) as monitor:
        train(monitor, 0, 2 * STEPS)
    steps = lines(tmp_path / "steps.jsonl")
    assert [line["step"] for line in steps] == list(range(2 * STEPS))
    assert [line["epoch"] for line in steps] == [0] * STEPS + [1] * STEPS
    for step, line in enumerate(steps):
        assert [line[name] for name in LOSSES] == values(step)[:4].tolist()
        assert line["seconds"] == {"sample": 0.25, "forward": 0.25}
    assert lines(tmp_path / "evaluations.jsonl") == [
        {"step": 4, "epoch": 0, "split": "validation", "recall@20": 0.04},
        {"step": 9, "epoch": 1, "split": "validation", "recall@20": 0.09},
    ]
    tags = ("total", "alignment", "user_uniformity", "item_uniformity")
    expected = {f"loss/{tag}": index for index, tag in enumerate(tags)}
    expected |= {"gradient_norm/dense": 4, "gradient_norm/tables": 5}
    for tag, index in expected.items():
        assert points(tmp_path, tag) == [(step, 10.0 * step + index) for step in range(2 * STEPS)]
    for tag, value in {"graph/input_share": 0.5, "time/sample": 0.25, "speed/interactions_per_second": 200}.items():
        assert points(tmp_path, tag) == [(step, value) for step in range(2 * STEPS)]
    assert dict(points(tmp_path, "metrics-validation/recall@20")) == pytest.approx({4: 0.04, 9: 0.09})
    assert points(tmp_path, "time/evaluate") == [(4, 2.0), (9, 2.0)]
    assert all(20 < mib < 100_000 for _, mib in points(tmp_path, "memory/resident_mib"))


def test_log_every_thins_tensorboard_alone(tmp_path: Path) -> None:
    with start(tmp_path, log_every=3) as monitor:
        train(monitor, 0, 7)
    assert [line["step"] for line in lines(tmp_path / "steps.jsonl")] == list(range(7))
    assert [step for step, _ in points(tmp_path, "loss/total")] == [2, 5]


def test_values_stay_on_the_device_until_they_are_due(tmp_path: Path) -> None:
    with start(tmp_path, log_every=3) as monitor:
        for step in range(2):
            monitor.step(step, 0, 100, values(step), {}, {"forward": 0.1})
        assert (tmp_path / "steps.jsonl").read_text() == ""
        monitor.step(2, 0, 100, values(2), {}, {"forward": 0.1})
        assert len(lines(tmp_path / "steps.jsonl")) == 3


def test_settings_and_plan_are_text(tmp_path: Path) -> None:
    with start(tmp_path):
        pass
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")]
    text = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags}
    assert "| train.epochs | 3 |" in text["settings/text_summary"]
    assert "a plan" in text["sharding plan/text_summary"]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    interrupted = start(tmp_path)
    train(interrupted, 0, STEPS + 3)
    interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 8, "epo')  # torn by a power failure
    assert lines(tmp_path / "evaluations.jsonl")[-1]["step"] == STEPS - 1
    with start(tmp_path, resumed_at=STEPS) as monitor:
        train(monitor, STEPS, 2 * STEPS, offset=0.5)
    steps = lines(tmp_path / "steps.jsonl")
    assert [line["step"] for line in steps] == list(range(2 * STEPS))
    kept_then_redone = [10.0 * step + (0.5 if step >= STEPS else 0.0) for step in range(2 * STEPS)]
    assert [line["loss"] for line in steps] == kept_then_redone
    assert points(tmp_path, "loss/total") == list(enumerate(kept_then_redone))
    # What was measured just before the checkpoint stays, in both.
    assert [line["step"] for line in lines(tmp_path / "evaluations.jsonl")] == [4, 9]
    assert [step for step, _ in points(tmp_path, "metrics-validation/recall@20")] == [4, 9]
    assert [step for step, _ in points(tmp_path, "time/evaluate")] == [4, 9]


def test_evaluations_that_are_redone_are_dropped(tmp_path: Path) -> None:
    with start(tmp_path) as monitor:
        train(monitor, 0, 2 * STEPS)
        monitor.evaluation(2 * STEPS, 1, "test", {"recall@20": 0.1})
    file = tmp_path / "evaluations.jsonl"
    assert [(line["step"], line["split"]) for line in lines(file)][-1] == (9, "test")
    start(tmp_path, resumed_at=2 * STEPS)  # killed after the test: it is done again
    assert [(line["step"], line["split"]) for line in lines(file)] == [(4, "validation"), (9, "validation")]
    start(tmp_path, resumed_at=2 * STEPS, evaluated_at=STEPS)  # saved at this step, but not evaluated yet
    assert [line["step"] for line in lines(file)] == [4]


def test_everything_is_on_the_disk_before_a_checkpoint_is(tmp_path: Path) -> None:
    monitor = start(tmp_path, log_every=2)
    train(monitor, 0, STEPS)  # an odd number of steps; nothing is closed
    assert len(lines(tmp_path / "steps.jsonl")) == STEPS
    assert len(lines(tmp_path / "evaluations.jsonl")) == 1
    assert [step for step, _ in points(tmp_path, "loss/total")] == [1, 3]
    assert len(points(tmp_path, "metrics-validation/recall@20")) == 1
    with monitor:
        pass


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("bad", "name", "mend"),
    [
        ([0, 2], "user_uniformity is nan", "tables.lr"),
        ([0, 1, 3], "alignment is nan", "dense.lr"),
        ([0], "loss is nan", "dense.lr"),
        ([5], "the tables' gradient is nan", "tables.lr"),
        ([4], "the encoder's gradient is nan", "dense.lr"),
    ],
)
def test_values_that_are_not_finite_stop_every_rank(
    tmp_path: Path, rank: int, bad: list[int], name: str, mend: str
) -> None:
    spoilt = values(7)
    spoilt[bad] = torch.nan
    with start(tmp_path, log_every=3, rank=rank) as monitor:
        train(monitor, 0, 7)
        expected = rf"^step 7 \(epoch 1\): {name}; the last checkpoint is kept; start again with a lower {mend} "
        with pytest.raises(NotFiniteError, match=expected):
            monitor.step(7, 1, 100, spoilt, {}, {})
    if rank == 0:  # what led there is on record
        assert [line["step"] for line in lines(tmp_path / "steps.jsonl")] == list(range(7))


def test_infinity_is_not_finite_either(tmp_path: Path) -> None:
    with start(tmp_path) as monitor, pytest.raises(NotFiniteError, match="item_uniformity is -inf"):
        monitor.step(0, 0, 100, torch.tensor([0.0, 0, 0, -torch.inf, 0, 0, -1]), {}, {})


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start(tmp_path, rank=1) as monitor:
        train(monitor, 0, STEPS)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_an_epoch_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start(tmp_path) as monitor:
        train(monitor, 0, STEPS)
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("epoch   0  loss 40.0000  ")
    assert "positives/s" in first
    assert second == "epoch   0  validation recall@20 0.0400"
    assert err == ""


def test_a_terminal_shows_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    console = Console(STEPS, redraw=0.0)
    console.begin_epoch(0, 1)
    for _ in range(1, STEPS):
        console.show(loss=40.0, positives=100, seconds=0.5)
        console.step(100)
    console.end_epoch()
    out, err = capsys.readouterr()
    assert out == ""
    assert "epoch 0" in err
    assert "1/5" in err  # the resumed epoch had one step behind it
    assert "5/5" in err
    assert "loss=40.0000, positives/s=200" in err


def test_phases_add_up() -> None:
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    timer = PhaseTimer(lambda: next(clock))
    with timer("forward"):
        pass
    with pytest.raises(ValueError, match="inside"), timer("forward"):
        raise ValueError("inside")
    assert timer.take() == {"forward": 3.0}
    with timer("backward"):
        pass
    assert timer.take() == {"backward": 4.0}
    assert timer.take() == {}
    assert timer.total == {"forward": 3.0, "backward": 4.0}


def test_the_run_folder_says_how_to_repeat_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "data.path=a b"])
    folder = tmp_path / "runs" / "x"
    chosen = settings(folder)
    open_run_folder(folder, chosen, "a plan", 2)
    assert Settings.model_validate(yaml.safe_load((folder / "settings.yaml").read_text())) == chosen
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["torch"].startswith(torch.__version__.split("+")[0])
    assert {"cm3_dist", "python", "torchrec", "dgl", "numpy"} <= versions.keys()
    assert (folder / "plan.txt").read_text() == "a plan\n"
    assert "'data.path=a b'" in (folder / "command.txt").read_text()
    with pytest.raises(InputError, match=rf"^{folder}: holds a run already; .*run\.dir"):
        refuse_taken(folder, resume=False)
    refuse_taken(folder, resume=True)
    open_run_folder(folder, chosen, "another plan", 4)
    assert (folder / "plan.txt").read_text() == "another plan\n"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/x: cannot be written"):
        open_run_folder(tmp_path / "file" / "x", chosen, "a plan", 2)


def test_the_result_is_a_file_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"recall@20": 0.1035, "ndcg@20": 0.0471, "precision@20": 0.005, "map@20": 0.03}
    content = {
        "validation": {**row, "recall@20": 0.102},
        "test": row,
        "evaluated": ["validation", "test"],
        "baselines": {"popularity": {**row, "recall@20": 0.0597}, "random": {**row, "recall@20": 0.0039}},
        "best_epoch": 3,
        "epochs": 5,
        "seconds": 12.3,
        "world_size": 2,
    }
    path = write_result(tmp_path, content)
    assert path == tmp_path / "metrics.json"
    assert json.loads(path.read_text()) == content
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]
    print_result(content, path, tmp_path / "checkpoints" / "step-00000030")
    out = capsys.readouterr().out
    for word in ("CM3", "popularity", "random", "Recall@20", "NDCG@20", "0.1035", "0.0597", "0.0039", "test"):
        assert word in out
    for line in (
        str(path),
        str(tmp_path / "checkpoints" / "step-00000030"),
        f"tensorboard --logdir {tmp_path / 'tensorboard'}",
        f"--config {tmp_path / 'settings.yaml'} --resume",
    ):
        assert line in out


def test_only_later_lines_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    keep_lines(file, lambda line: line["step"] < 4)
    assert not file.exists()
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(6)) + '{"st')
    keep_lines(file, lambda line: line["step"] < 4)
    assert [line["step"] for line in lines(file)] == [0, 1, 2, 3]
    keep_lines(file, lambda line: False)
    assert file.read_text() == ""
