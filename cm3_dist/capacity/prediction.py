"""Everything a run needs, put together for one rank: the one that needs most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cm3_dist.capacity import disk
from cm3_dist.capacity.activations import ranked_users
from cm3_dist.capacity.hardware import Machine
from cm3_dist.capacity.memory import Item, mapped_features, peak, rank_memory
from cm3_dist.capacity.sizes import RankLoad, RankStep
from cm3_dist.capacity.time_model import StepTime, evaluation_time, step_time
from cm3_dist.capacity.traffic_model import evaluation_bytes, step_bytes
from cm3_dist.config.settings import Settings
from cm3_dist.model.dimensions import tables
from cm3_dist.model.sharding_plan import table_storage
from partition.folder.manifest import Manifest


@dataclass(frozen=True)
class Prediction:
    """Of one run on one machine. Bytes, seconds."""

    mode: str
    machine: Machine
    steps: int  # of an epoch
    memory: list[Item]  # of the rank that needs most
    mapped: float  # its features' files
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
    def on_disk(self) -> float:
        """Prepared folder and checkpoints."""
        return sum(self.prepared.values()) + self.checkpoints

    def short(self) -> list[str]:
        """What does not fit, in words."""
        machine, gib = self.machine, 2**30
        lacks = [
            ("a rank's memory", self.host, machine.host_memory),
            ("a rank's device memory", self.device, machine.memory),
            ("disk", self.on_disk, machine.disk),
        ]
        return [
            f"{name}: {need / gib:,.1f} GiB needed, {have / gib:,.1f} GiB there"
            for name, need, have in lacks
            if need > have
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "mode": self.mode,
            "machine": vars(self.machine),
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


def predict(
    manifest: Manifest,
    settings: Settings,
    mode: str,
    machine: Machine,
    loads: list[RankLoad],
    steps: list[list[RankStep]],
    prepared: dict[str, float],
) -> Prediction:
    """From sizes: `loads` of every rank, or of one that stands for all; `steps` [steps][ranks] likewise."""
    ranks = machine.ranks
    table_bytes = table_storage(tables(manifest, settings), settings.tables.name, ranks, machine.device)
    place = "host" if machine.device == "cpu" else "device"
    memories = [
        rank_memory(manifest, settings, mode, machine.device, ranks, load, step, table_bytes)
        for row in steps
        for load, step in zip(loads, row, strict=True)
    ]
    memory = max(memories, key=lambda items: peak(items, place))  # type: ignore[arg-type]
    sent = _mean([step_bytes(manifest, settings, mode, ranks, step) for row in steps for step in row])
    sent_evaluation = _mean([evaluation_bytes(manifest, settings, mode, ranks, load) for load in loads])
    times = [
        step_time(
            manifest, settings, mode, machine, step, sum(step_bytes(manifest, settings, mode, ranks, step).values())
        )
        for row in steps
        for step in row
    ]
    prefetch = settings.machine.prefetch
    slowest = max(times, key=lambda time: time.total(prefetch))
    count = max(1, -(-manifest.train // settings.train.batch_size))
    ranked = max(ranked_users(manifest, settings.evaluate.users, "validation", load) for load in loads)
    evaluation = evaluation_time(manifest, settings, machine, loads[0], ranked, sum(sent_evaluation.values()))
    checkpoint = disk.checkpoint_bytes(manifest, settings, table_bytes, ranks)
    return Prediction(
        mode,
        machine,
        count,
        memory,
        max(mapped_features(manifest, load) for load in loads),
        sent,
        sent_evaluation,
        slowest,
        slowest.total(prefetch),
        evaluation,
        count * slowest.total(prefetch) + evaluation / settings.evaluate.every,
        checkpoint,
        checkpoint * (settings.run.keep + 1),
        prepared,
        disk.preparation_seconds(manifest),
        disk.preparation_bytes(manifest),
    )


def _mean(counted: list[dict[Any, float]]) -> dict[str, float]:
    return {kind: sum(sent[kind] for sent in counted) / len(counted) for kind in counted[0]}
