"""The command; see tests/faults/__init__.py."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.faults import forked

PREPARATIONS, RESTARTS = 5, 25  # every so many trials is of a preparation, of torchrun's --max-restarts


def main(
    trials: Annotated[int, typer.Option(min=0, help="trainings and preparations to interrupt")] = 50,
    damage: Annotated[bool, typer.Option(help="change files as well")] = True,
    disks: Annotated[int, typer.Option(min=0, help="disks to fill; 0 leaves out read-only and removed ones too")] = 10,
    stages: Annotated[bool, typer.Option(help="end a preparation at every moment between its stages")] = True,
    soak: Annotated[float, typer.Option(min=0, help="minutes of a training whose memory is watched; 0 is none")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="behind every choice")] = 0,
    file: Annotated[Path | None, typer.Option("--json", help="where to write the counts and every trial")] = None,
    folder: Annotated[Path | None, typer.Option(help="work here, and leave everything")] = None,
) -> None:
    """Breaks runs and files on purpose, and counts what comes of it."""
    began = time.monotonic()
    forked.warm()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        place.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"seed": seed, **_kills(trials, seed, place)}
        if disks:
            content["disks"] = _disks(disks, seed, place)
        if stages:
            content["stages"] = _stages(place)
        if damage:
            content["damage"] = _damage(seed, place)
        if soak:
            content["soak"] = _soak(soak, place)
    content["seconds"] = round(time.monotonic() - began)
    if file is not None:
        file.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({name: _counts(value) for name, value in content.items()}, indent=1))
    sys.exit(int(not _sound(content)))


def _kills(trials: int, seed: int, place: Path) -> dict[str, Any]:
    from tests.faults import kills, preparing

    (place / "training").mkdir()
    (place / "preparation").mkdir()
    training, preparation = kills.Kills(place / "training", seed), preparing.Preparations(place / "preparation", seed)
    done: dict[str, list[kills.Trial]] = {"training": [], "preparation": []}
    for number in range(trials):
        kind = "preparation" if number % PREPARATIONS == PREPARATIONS - 1 else "training"
        if number % RESTARTS == RESTARTS - 2:
            trial = training.restarted(number)
        else:
            trial = (preparation if kind == "preparation" else training).trial(number)
        done[kind].append(trial)
        print(f"{kind} {trial}", flush=True)
    return {kind: kills.summary(each) for kind, each in done.items()}


def _disks(count: int, seed: int, place: Path) -> dict[str, Any]:
    from tests.faults.disks import Disks, summary

    (place / "disks").mkdir()
    done = []
    for trial in Disks(place / "disks", seed).trials(count):
        done.append(trial)
        print(trial, flush=True)
    return summary(done)


def _stages(place: Path) -> dict[str, Any]:
    from tests.faults.disks import summary
    from tests.faults.stages import Preparing

    (place / "stages").mkdir()
    preparing, done = Preparing(place / "stages"), []
    for trial in (*preparing.killed(), *preparing.full()):
        done.append(trial)
        print(trial, flush=True)
    return summary(done)


def _damage(seed: int, place: Path) -> dict[str, Any]:
    from tests.faults import damage

    found = damage.Damages(place, seed).trials()
    for trial in found:
        if not trial.detected or trial.loaded or trial.passed_over is False:
            print(f"not as promised: {trial}", flush=True)
    return damage.summary(found)


def _soak(minutes: float, place: Path) -> dict[str, Any]:
    from tests.faults.soak import soak

    (place / "soak").mkdir()
    return soak(place / "soak", minutes)


def _counts(value: Any) -> Any:
    return {name: count for name, count in value.items() if name != "each"} if isinstance(value, dict) else value


def _sound(content: dict[str, Any]) -> bool:
    kinds = [kind for kind in ("training", "preparation", "disks", "stages") if kind in content]
    lived = all(content[kind]["survived"] == content[kind]["trials"] for kind in kinds)
    damage = content.get("damage", {"detected": 0, "trials": 0, "loaded": 0, "passed_over": 0, "of_checkpoints": 0})
    found = damage["detected"] == damage["trials"] and not damage["loaded"]
    return (
        lived
        and found
        and not content.get("soak", {}).get("wrong")
        and damage["passed_over"] == damage["of_checkpoints"]
    )


if __name__ == "__main__":
    typer.run(main)
