"""The stages of `benchmarks.scale`: each runs the program's own commands and says what they took."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.observe import GIB, observe
from partition.folder.manifest import read_manifest

PARTS = 4
MODALITIES = "image:128:float16,text:128:float16"
SAMPLED = [
    "machine.device=cpu",
    "machine.threads=1",
    "machine.prefetch=1",
    "propagation.mode=sampled",
    "propagation.user_item_layers=2",
    "propagation.fanouts=[3,2]",
    "propagation.item_fanout=3",
    "evaluate.users=20000",
    "evaluate.test_users=20000",
]
RANKS = (1, 2, 4)
GROWTH = [1_000_000, 4_000_000, 15_000_000]
# Small enough that a batch's neighbourhoods hardly overlap in the smallest graph: shared rows are read once, so that at
# 32,768 a step of the small graph costs a third of one of the large graph.
GROWTH_BATCH = 2048
CUT = ["baby", "tiktok"]
METHODS = ["metis", "stream", "random"]


@dataclass(frozen=True)
class Headline:
    """One size, and how it is trained."""

    users: int
    items: int
    interactions: int
    train: tuple[str, ...]
    stages: tuple[str, ...]
    grown: bool = True  # from the base; else with planted tastes: Baby is too sparse to grow as dense as that

    @property
    def title(self) -> str:
        """Its numbers."""
        return f"{self.users:,} users x {self.items:,} items x {self.interactions:,} interactions"


HEADLINES = {
    "2m": Headline(
        2_000_000,
        2_000_000,
        15_000_000,
        ("train.epochs=1", "train.batch_size=32768", "loss.scope=local"),
        ("synthesise", "prepare", "plan", "train", "ranks", "cut", "growth"),
    ),
    "1m": Headline(
        1_000_000,
        300_000,
        42_000_000,
        ("train.max_steps=200", "train.batch_size=8192"),
        ("synthesise", "prepare", "plan", "train"),
        grown=False,
    ),
}


@dataclass(frozen=True)
class Place:
    """A headline's folder: raw, prepared, runs/, results/, logs/."""

    headline: Headline
    folder: Path
    base: Path
    steps: int | None = None  # of the epoch that stage `train` measures; its time is scaled

    @property
    def results(self) -> Path:
        """A JSON file a stage."""
        return self.folder / "results"

    def run(self, name: str, command: list[str], **environment: str) -> dict[str, Any]:
        """One of the program's commands, its output in logs/NAME.txt."""
        log = self.folder / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        found = observe(command, log, **environment).plain()
        found["command"] = found["command"].replace(f"{self.folder}/", "").replace(str(self.base), self.base.name)
        return found

    def partition(self, name: str, *arguments: object) -> dict[str, Any]:
        """`python -m partition ...`."""
        return self.run(name, [sys.executable, "-m", "partition", *map(str, arguments)])

    def train(self, name: str, prepared: Path, ranks: int, *settings: str) -> dict[str, Any]:
        """`python -m cm3_dist.train ...`, under torchrun for several ranks, one thread a rank."""
        run = self.folder / "runs" / name
        shutil.rmtree(run, ignore_errors=True)
        launcher = [str(Path(sys.executable).with_name("torchrun")), f"--nproc_per_node={ranks}"]
        command = [*(launcher if ranks > 1 else [sys.executable]), "-m", "cm3_dist.train"]
        command += [f"data.path={prepared}", f"run.dir={run}", *SAMPLED, *settings]
        found = self.run(name, command, OMP_NUM_THREADS="1")
        metrics = json.loads((run / "metrics.json").read_text())
        steps = [json.loads(line)["seconds"] for line in (run / "steps.jsonl").read_text().splitlines()]
        found["ranks"], found["steps"] = ranks, len(steps)
        found["resident_mib"] = metrics["peak_memory_mib"]["resident"]
        found["seconds_by_phase"] = metrics["seconds_by_phase"]
        # The first step also touches memory and code for the first time.
        found["step_seconds"] = median(sum(step.values()) for step in steps[min(1, len(steps) - 1) :])
        found["epoch_seconds_of_steps"] = sum(sum(step.values()) for step in steps)
        found["test"], found["baselines"] = metrics["test"], metrics["baselines"]
        return found


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    memory = round(psutil.virtual_memory().total / GIB, 1)
    return {"processor": processor, "cores": len(os.sched_getaffinity(0)), "memory_gib": memory}


def synthesise(place: Place) -> dict[str, Any]:
    """Data of the headline's size."""
    size = place.headline
    found = _made(place, "raw", size.users, size.items, size.interactions)
    return {**found, "disk_gib": _disk(place.folder / "raw")}


def prepare(place: Place) -> dict[str, Any]:
    """In 4 parts."""
    output = place.folder / "prepared"
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(output.with_name(f".{output.name}.work"), ignore_errors=True)
    found = place.partition("prepare", "build", "--input", place.folder / "raw", "--parts", PARTS, "--output", output)
    manifest = read_manifest(output)
    inside = sum(part.inner_edges for part in manifest.parts) / manifest.train
    return {**found, "statistics": manifest.statistics, "inside": inside, "disk_gib": _disk(output)}


def plan(place: Place) -> dict[str, Any]:
    """What the capacity planner says of the training, on 4 ranks, and of a rank's memory on fewer."""
    path, found, resident = place.folder / "plan.json", {}, {}
    for count in RANKS:
        command = [sys.executable, "-m", "cm3_dist.capacity", "--data", str(place.folder / "prepared")]
        command += ["--ranks", str(count), "--json", str(path)]
        found = place.run("plan", [*command, *SAMPLED, *place.headline.train])
        found["prediction"] = json.loads(path.read_text())
        memory = found["prediction"]["memory"]
        resident[str(count)] = round((memory["host_peak"] + memory["mapped_features"]) / 2**20, 1)
    return {**found, "resident_mib": resident}


def train(place: Place) -> dict[str, Any]:
    """As the headline says, on 4 ranks, with the evaluations at its end."""
    prepared, settings = place.folder / "prepared", list(place.headline.train)
    if place.steps is not None:
        settings.append(f"train.max_steps={place.steps}")
    found = place.train("train", prepared, 4, *settings)
    if "train.epochs=1" in settings:
        batch = next(int(text.split("=")[1]) for text in settings if text.startswith("train.batch_size"))
        found["steps_an_epoch"] = math.ceil(read_manifest(prepared).train / batch)
        whole = found["steps"] == found["steps_an_epoch"]
        found["epoch_seconds"] = (
            found["epoch_seconds_of_steps"] if whole else found["steps_an_epoch"] * found["step_seconds"]
        )
    return found


def ranks(place: Place) -> dict[str, Any]:
    """Memory a rank on 1, 2 and 4 ranks: three steps of the same batch, evaluations of a few users."""
    found = {}
    for count in RANKS:
        few = ("train.max_steps=3", "evaluate.users=1000", "evaluate.test_users=1000")
        settings = [text for text in place.headline.train if not text.startswith("train.epochs")]
        found[str(count)] = place.train(f"ranks-{count}", place.folder / "prepared", count, *settings, *few)
    return {"resident_mib": {count: one["resident_mib"] for count, one in found.items()}, "runs": found}


def cut(place: Place) -> dict[str, Any]:
    """Bytes that a rank sends a step, by how the parts were cut: real data sets, and the base grown a little."""
    found = {}
    sources = {name: place.base.with_name(name) for name in CUT}
    sources["grown to 1M"] = place.folder / "raw-1000000"
    _made(place, "raw-1000000", *_sizes(place, 1_000_000))
    for name, source in sources.items():
        for mode in ("exact", "sampled"):
            sent = {}
            for method in METHODS:
                output = place.folder / f"cut-{name.replace(' ', '-')}-{method}"
                if not output.exists():
                    arguments = ("--parts", PARTS, "--output", output, "--method", method)
                    place.partition(output.name, "build", "--input", source, *arguments)
                path = place.folder / "cut.json"
                command = [sys.executable, "-m", "cm3_dist.capacity", "--data", str(output), "--ranks", "4"]
                settings = ["--draw", "3", "--json", str(path), f"propagation.mode={mode}", "train.batch_size=4096"]
                place.run("cut", [*command, *settings])
                sent[method] = sum(json.loads(path.read_text())["bytes_per_step"].values())
            found[f"{name}, {mode}"] = sent
    return found


def growth(place: Place) -> dict[str, Any]:
    """Time of an epoch, steps x median step, and of preparation, as the same data set grows."""
    found = {}
    for interactions in GROWTH:
        raw, prepared = place.folder / f"raw-{interactions}", place.folder / f"prepared-{interactions}"
        if interactions == place.headline.interactions:
            raw, prepared = place.folder / "raw", place.folder / "prepared"
        else:
            _made(place, raw.name, *_sizes(place, interactions))
        if not prepared.exists():
            arguments = ("--parts", PARTS, "--output", prepared)
            place.partition(prepared.name, "build", "--input", raw, *arguments)
        few = ("train.max_steps=30", "evaluate.users=1000", "evaluate.test_users=1000")
        settings = (*place.headline.train, f"train.batch_size={GROWTH_BATCH}", *few)
        one = place.train(f"growth-{interactions}", prepared, 4, *settings)
        manifest = read_manifest(prepared)
        one["epoch_seconds"] = math.ceil(manifest.train / GROWTH_BATCH) * one["step_seconds"]
        seconds = {name: value for name, value in manifest.statistics.items() if name.startswith("seconds_")}
        found[str(interactions)] = {**one, "train": manifest.train, "prepare_seconds": sum(seconds.values())}
    ends = [(one["train"], one["epoch_seconds"]) for one in found.values()]
    return {"runs": found, "exponent": slope([math.log(x) for x, _ in ends], [math.log(y) for _, y in ends])}


def slope(x: list[float], y: list[float]) -> float:
    """Of the least-squares line."""
    centre = sum(x) / len(x)
    return sum((a - centre) * b for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def _sizes(place: Place, interactions: int) -> tuple[int, int, int]:
    """Users and items in proportion."""
    share = interactions / place.headline.interactions
    return round(place.headline.users * share), round(place.headline.items * share), interactions


def _made(place: Place, name: str, users: int, items: int, interactions: int) -> dict[str, Any]:
    raw = place.folder / name
    if raw.exists():
        shutil.rmtree(raw)
    sizes = ("--users", users, "--items", items, "--interactions", interactions)
    what = (*(("--expand", place.base) if place.headline.grown else ()), "--modalities", MODALITIES)
    return place.partition(name, "synthetic", "--output", raw, *what, *sizes)


def _disk(folder: Path) -> float:
    """GiB of its files."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GIB, 2)


STAGES: dict[str, Callable[[Place], dict[str, Any]]] = {
    "synthesise": synthesise,
    "prepare": prepare,
    "plan": plan,
    "train": train,
    "ranks": ranks,
    "cut": cut,
    "growth": growth,
}
