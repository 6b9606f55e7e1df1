"""How TensorBoard shows a run: its settings in the HParams tab, and related curves in one chart.

The HParams tab compares the runs below one --logdir, a row per run. A run cannot know which columns are of interest;
jobs.report writes those to the folder of a sweep.
"""

from __future__ import annotations

from typing import Any

from cm3_dist.config.loading import flat
from cm3_dist.config.settings import Settings

APART = ("run.", "machine.", "evaluate.")  # settings that change where and how a run is done, not its result
PHASES = ("sample", "fetch", "forward", "backward", "optimizer", "replay")


def hyper_parameters(settings: Settings) -> dict[str, str | bool | float]:
    """Settings as the HParams tab takes them: numbers, strings and booleans by dotted key."""
    plain = flat(settings.plain())
    return {key: _simple(value) for key, value in plain.items() if not key.startswith(APART)}


def compared_metrics(settings: Settings) -> list[str]:
    """Tags of the metrics that the HParams tab shows: recall and NDCG, the watched metric first."""
    watched = settings.evaluate.monitor
    names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in settings.evaluate.ks]
    ordered = [watched, *(name for name in names if name != watched)]
    return [f"metrics-{split}/{name}" for split in ("test", "validation") for name in ordered]


def session_start(settings: Settings) -> Any:
    """The summary that adds a run's row, with its settings, to the HParams tab."""
    from torch.utils.tensorboard.summary import hparams

    return hparams(hyper_parameters(settings), {})[1]


def experiment(runs: list[Settings]) -> Any:
    """The summary that chooses the columns of the HParams tab: settings in which `runs` differ, and `compared_metrics`.

    Without it, TensorBoard offers every setting and every curve.
    """
    from torch.utils.tensorboard.summary import hparams

    rows = [hyper_parameters(settings) for settings in runs]
    differing = {key: value for key, value in rows[0].items() if any(row.get(key) != value for row in rows)}
    return hparams(differing or rows[0], dict.fromkeys(compared_metrics(runs[0]), 0.0))[0]


def charts(settings: Settings) -> dict[str, dict[str, list[Any]]]:
    """Charts of the Custom Scalars tab, as `SummaryWriter.add_custom_scalars` takes them."""
    losses = [f"loss/{name}" for name in ("total", "alignment", "user_uniformity", "item_uniformity")]
    return {
        "Loss": {
            "terms": ["Multiline", losses],
            "gradient norms": ["Multiline", ["gradient_norm/dense", "gradient_norm/tables"]],
        },
        "Metrics": {
            f"{split} {metric}": ["Multiline", [f"metrics-{split}/{metric}@{k}" for k in settings.evaluate.ks]]
            for split in ("validation", "test")
            for metric in ("recall", "ndcg", "precision", "map")
        },
        "Time and memory": {
            "seconds a step, by phase": ["Multiline", [f"time/{phase}" for phase in PHASES]],
            "seconds an evaluation, a checkpoint": ["Multiline", ["time/evaluate", "time/save"]],
            "interactions a second": ["Multiline", ["speed/interactions_per_second"]],
            "MiB": ["Multiline", ["memory/resident_mib", "memory/cuda_peak_mib"]],
        },
    }


def _simple(value: Any) -> str | bool | float:
    if isinstance(value, (bool, str)):
        return value
    return float(value) if isinstance(value, (int, float)) else str(value)
