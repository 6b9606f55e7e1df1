"""Pictures of `benchmarks.scale`'s results: how memory and time grow, and what the cut saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

METHODS = {"metis": "METIS", "stream": "streaming", "random": "random"}
COLOURS = {"metis": "tab:blue", "stream": "tab:green", "random": "0.7"}


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel for each of ranks, growth (time, then memory) and cut that is among the results, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = []
    if "ranks" in results:
        predicted = results.get("plan", {}).get("resident_mib", {})
        panels.append((_ranks, {**results["ranks"], "predicted_mib": predicted}))
    if "growth" in results:
        panels += [(_time, results["growth"]), (_memory, results["growth"])]
    if "cut" in results:
        panels.append((_cut, results["cut"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), layout="constrained", squeeze=False)
    for axis, (panel, result) in zip(axes[0], panels, strict=True):
        panel(axis, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ranks(axis: Any, result: dict[str, Any]) -> None:
    peaks = {int(count): max(found) / 1024 for count, found in result["resident_mib"].items()}
    x, y = list(peaks), list(peaks.values())
    axis.plot(x, y, "o-", color="tab:blue", label="measured")
    if result["predicted_mib"]:
        predicted = {int(count): found / 1024 for count, found in result["predicted_mib"].items()}
        axis.plot(list(predicted), list(predicted.values()), "x:", color="tab:orange", label="planner")
    axis.plot(x, [y[0] * x[0] / count for count in x], "--", color="0.7", label="1 / ranks")
    axis.set(title="memory of a rank", xlabel="ranks", ylabel="GiB, mapped files included", ylim=(0, None), xticks=x)
    axis.legend(frameon=False)


def _time(axis: Any, result: dict[str, Any]) -> None:
    runs = result["runs"].values()
    x, y = [one["train"] for one in runs], [one["epoch_seconds"] / 60 for one in runs]
    axis.plot(x, y, "o-", color="tab:blue")
    axis.plot(x, [y[0] * value / x[0] for value in x], "--", color="0.7", label="linear")
    title = f"an epoch, exponent {result['exponent']:.2f}"
    axis.set(xscale="log", yscale="log", title=title, xlabel="training interactions", ylabel="minutes")
    for side, values, unit in ((axis.xaxis, x, "M"), (axis.yaxis, y, "")):
        scaled = [value / 1e6 if unit else value for value in values]
        side.set_ticks(values, [f"{value:.1f}{unit}" for value in scaled])
        side.set_ticks([], minor=True)
    axis.legend(frameon=False)


def _memory(axis: Any, result: dict[str, Any]) -> None:
    runs = result["runs"].values()
    x = [one["train"] / 1e6 for one in runs]
    axis.plot(x, [one["peak_gib"] for one in runs], "o-", color="tab:blue")
    title, along = "memory of all 4 ranks", "training interactions, millions"
    axis.set(title=title, xlabel=along, ylabel="GiB", xlim=(0, None), ylim=(0, None))


def _cut(axis: Any, result: dict[str, Any]) -> None:
    for place, method in enumerate(METHODS):
        shares = [sent[method] / sent["random"] for sent in result.values()]
        across = [number + 0.27 * (place - 1) for number in range(len(shares))]
        axis.bar(across, shares, 0.25, color=COLOURS[method], label=METHODS[method])
    axis.axhline(0.6, color="0.3", linestyle=":", linewidth=1)
    axis.set_xticks(range(len(result)), [name.replace(", ", "\n") for name in result], fontsize=7)
    axis.set(title="bytes between ranks in a step", ylabel="share of random parts'")
    axis.legend(frameon=False, fontsize=8)
