"""Everything a run needs, put together for one rank: the one that needs most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cm3_dist.capacity import disk
from cm3_dist.capacity.dry_run import dry_final_rows, dry_step
from cm3_dist.capacity.from_folder import drawn_steps
from cm3_dist.capacity.from_numbers import Expectation
from cm3_dist.capacity.hardware import GIB, Hardware
from cm3_dist.capacity.memory import Entry, Place, peak, rank_memory, ranked_users
from cm3_dist.capacity.scenario import RankLoad, RankStep, Scenario
from cm3_dist.capacity.time_model import StepTime, evaluation_time, step_time
from cm3_dist.capacity.traffic_model import evaluation_bytes, step_bytes
from cm3_dist.model.dimensions import tables
from cm3_dist.model.sharding_plan import table_storage


@dataclass(frozen=True)
class Prediction:
    """One run. Bytes, seconds."""

    mode: str
    hardware: Hardware
    steps: int  # per epoch
    memory: list[Entry]  # of the rank that needs most
    mapped: float  # its feature files, of which the page cache keeps what fits
    sent: dict[str, float]  # by a rank in a step: mean over ranks and steps
    sent_evaluation: dict[str, float]
    step: StepTime
    step_seconds: float
    evaluation_seconds: float
    epoch_seconds: float  # with its share of evaluations
    checkpoint: float
    checkpoints: float  # all that are kept
    prepared: dict[str, float]
    prepare_seconds: float
    prepare_memory: float

    @property
    def host(self) -> float:
        """Peak of a rank's own memory on the host."""
        return peak(self.memory, "host")

    @property
    def device(self) -> float:
        """Peak on the device; 0 on a CPU."""
        return peak(self.memory, "device")

    @property
    def needs(self) -> list[tuple[str, float, float]]:
        """What is limited: name, bytes needed, bytes available."""
        on_disk = sum(self.prepared.values()) + self.checkpoints
        return [
            ("a rank's memory", self.host, self.hardware.host_memory),
            ("a rank's device memory", self.device, self.hardware.memory),
            ("disk", on_disk, self.hardware.disk),
        ]

    def short(self) -> list[str]:
        """What does not fit, in words."""
        return [
            f"{name}: {need / GIB:,.1f} GiB needed, {available / GIB:,.1f} GiB available"
            for name, need, available in self.needs
            if need > available
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "mode": self.mode,
            "machine": vars(self.hardware),
            "steps_per_epoch": self.steps,
            "memory": {
                "host_peak": self.host,
                "device_peak": self.device,
                "mapped_features": self.mapped,
                "prepare": self.prepare_memory,
                "items": [vars(item) for item in self.memory],
            },
            "bytes_per_step": self.sent,
            "bytes_per_evaluation": self.sent_evaluation,
            "seconds": {
                "step": self.step_seconds,
                "epoch": self.epoch_seconds,
                "evaluation": self.evaluation_seconds,
                "prepare": self.prepare_seconds,
                "step_by_kind": vars(self.step),
            },
            "disk": {
                "checkpoint": self.checkpoint,
                "checkpoints_kept": self.checkpoints,
                "prepared": self.prepared,
            },
            "does_not_fit": self.short(),
        }


def predict_drawn(scenario: Scenario, steps: int) -> Prediction:
    """From steps drawn as training draws them."""
    return _predict(scenario, list(scenario.loads), drawn_steps(scenario, steps))


def predict_expected(scenario: Scenario) -> Prediction:
    """From expected steps; what ranks hold is counted where there is a folder."""
    expectation = Expectation(scenario)
    loads = list(scenario.loads) or [expectation.load()]
    return _predict(scenario, loads, [[expectation.step()] * len(loads)])


def _predict(scenario: Scenario, loads: list[RankLoad], steps: list[list[RankStep]]) -> Prediction:
    """`loads` of every rank, or of one that stands for all; `steps` [steps][ranks] are their steps."""
    manifest, settings = scenario.manifest, scenario.settings
    place: Place = "host" if scenario.hardware.device == "cpu" else "device"
    table_bytes = table_storage(
        tables(manifest, settings), settings.tables.name, scenario.ranks, scenario.hardware.device
    )
    final = [dry_final_rows(scenario, load) for load in loads]
    memories, sent, times = [], [], []
    for row in steps:
        for load, step, evaluation in zip(loads, row, final, strict=True):
            usage = dry_step(scenario, load, step)
            memories.append(rank_memory(scenario, load, step, (usage, evaluation), table_bytes))
            sent.append(step_bytes(scenario, step, usage))
            times.append(step_time(scenario, step, usage, sum(sent[-1].values())))
    sent_evaluation = _mean([evaluation_bytes(scenario, load, usage) for load, usage in zip(loads, final, strict=True)])
    slowest = max(times, key=lambda time: time.total(settings.machine.prefetch))
    step_seconds = slowest.total(settings.machine.prefetch)
    count = max(1, -(-manifest.train // settings.train.batch_size))
    ranked = max(ranked_users(scenario, load, "validation") for load in loads)
    evaluation_seconds = evaluation_time(scenario, loads[0], final[0], ranked, sum(sent_evaluation.values()))
    checkpoint = disk.checkpoint_bytes(scenario, table_bytes)
    whole = loads if len(loads) == scenario.ranks else loads * scenario.ranks
    counted = None if scenario.root is None else disk.folder_bytes(scenario.root, manifest)
    return Prediction(
        mode=scenario.mode,
        hardware=scenario.hardware,
        steps=count,
        memory=max(memories, key=lambda items: peak(items, place)),
        mapped=scenario.feature_bytes(max(load.items for load in loads)),
        sent=_mean(sent),
        sent_evaluation=sent_evaluation,
        step=slowest,
        step_seconds=step_seconds,
        evaluation_seconds=evaluation_seconds,
        epoch_seconds=count * step_seconds + evaluation_seconds / settings.evaluate.every,
        checkpoint=checkpoint,
        checkpoints=checkpoint * (settings.run.keep + 1),
        prepared=counted or disk.prepared_bytes(scenario, whole),
        prepare_seconds=disk.preparation_seconds(manifest),
        prepare_memory=disk.preparation_bytes(manifest),
    )


def _mean(counted: list[dict[str, float]]) -> dict[str, float]:
    kinds = dict.fromkeys(kind for sent in counted for kind in sent)
    return {kind: sum(sent.get(kind, 0) for sent in counted) / len(counted) for kind in kinds}
