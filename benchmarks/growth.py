"""How the cost of a step grows, one thing at a time, with a picture::

    python -m benchmarks.growth --json growth.json --plot docs/images/growth.png

Synthetic data; interactions, layers, width of a channel, batch and ranks are varied around one middle case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.timing import run_command, write_json

USERS, ITEMS, INTERACTIONS = 20_000, 8_000, 160_000
STEPS = 12
AXES: dict[str, list[int]] = {
    "interactions": [80_000, 160_000, 320_000, 640_000],
    "layers": [1, 2, 3, 4],
    "width": [16, 32, 64, 128],
    "batch": [1024, 2048, 4096, 8192],
    "ranks": [1, 2, 4],
}
MIDDLE = {"interactions": INTERACTIONS, "layers": 3, "width": 64, "batch": 2048, "ranks": 1}
TITLES = {
    "interactions": "interactions (users and items in proportion)",
    "layers": "user-item layers",
    "width": "width of a channel",
    "batch": "positives a step",
    "ranks": "ranks (2 cores, 1 thread each)",
}


def prepare(folder: Path, interactions: int) -> Path:
    """Generates and prepares data of that many interactions in 4 parts, once."""
    prepared = folder / f"prepared-{interactions}"
    if prepared.exists():
        return prepared
    raw, scale = folder / f"raw-{interactions}", interactions / INTERACTIONS
    sizes = ["--users", str(int(USERS * scale)), "--items", str(int(ITEMS * scale))]
    sizes += ["--interactions", str(interactions), "--seed", "1", "--modalities", "image:128,text:128"]
    for arguments in (
        ["synthetic", "--output", raw, *sizes],
        ["build", "--input", raw, "--parts", "4", "--output", prepared],
    ):
        command = [sys.executable, "-W", "ignore", "-m", "partition", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)
    return prepared


def milliseconds(folder: Path, case: dict[str, int]) -> float:
    """Median milliseconds of a step, its planning included, on as many ranks as the case says."""
    prepared = prepare(folder, case["interactions"])
    with tempfile.TemporaryDirectory(dir=folder) as run:
        torchrun = [str(Path(sys.executable).with_name("torchrun")), f"--nproc_per_node={case['ranks']}"]
        command = torchrun if case["ranks"] > 1 else [sys.executable]
        command += ["-m", "cm3_dist.train", f"data.path={prepared}", f"run.dir={run}/run", "machine.device=cpu"]
        command += ["propagation.mode=exact", f"propagation.user_item_layers={case['layers']}"]
        command += [f"model.dim={case['width']}", f"train.batch_size={case['batch']}", f"train.max_steps={STEPS}"]
        command += ["machine.threads=" + ("2" if case["ranks"] == 1 and not case.get("one_thread") else "1")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        lines = (Path(run) / "run" / "steps.jsonl").read_text().splitlines()
    return median(sum(json.loads(line)["seconds"].values()) for line in lines[2:]) * 1e3


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    """One panel an axis, both scales logarithmic, linear growth dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, panels = plt.subplots(1, len(curves), figsize=(3.2 * len(curves), 3), layout="constrained", squeeze=False)
    for panel, (axis, curve) in zip(panels[0], curves.items(), strict=True):
        x, y = list(curve), list(curve.values())
        panel.plot(x, y, "o-", color="tab:blue")
        if axis != "ranks":
            panel.plot(x, [y[-1] * value / x[-1] for value in x], "--", color="0.7", label="linear")
            panel.legend(frameon=False)
        panel.set(xscale="log", yscale="log", xlabel=TITLES[axis], title=axis, xticks=x)
        for side in (panel.xaxis, panel.yaxis):
            side.set_minor_formatter(NullFormatter())
            side.set_major_formatter(ScalarFormatter())
        panel.set_xticks(x, [f"{value // 1000}k" if value >= 10_000 else str(value) for value in x])
        panel.set_xticks([], minor=True)
        panel.set_yticks(y, [f"{value:.0f}" for value in y])
        panel.set_yticks([], minor=True)
    panels[0][0].set_ylabel("milliseconds a step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(
    output: Annotated[Path | None, typer.Option("--json", help="write the curves there")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw them there, as PNG")] = None,
    axes: Annotated[list[str] | None, typer.Option("--axis", help=f"some of: {', '.join(AXES)}")] = None,
) -> None:
    """Measure how a step's time grows with each of its sizes."""
    curves: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for axis in axes or AXES:
            curves[axis] = {}
            for value in AXES[axis]:
                case: dict[str, Any] = {**MIDDLE, axis: value, "one_thread": axis == "ranks"}
                curves[axis][value] = milliseconds(Path(folder), case)
                print(f"{axis:>12} {value:>8,}  {curves[axis][value]:8.1f} ms a step", flush=True)
    write_json(curves, output)
    if plot is not None:
        draw(curves, plot)


if __name__ == "__main__":
    run_command(main)
