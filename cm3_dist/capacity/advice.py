"""What would make a run fit that does not: settings, each alone where that is enough, else one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from cm3_dist.capacity.from_numbers import on_ranks
from cm3_dist.capacity.hardware import GIB
from cm3_dist.capacity.prediction import Prediction, predict_expected
from cm3_dist.capacity.scenario import Scenario
from cm3_dist.config.settings import Settings

MOST_RANKS = 1 << 14
NARROW = 128  # PCA to this width, where features are wider
USEFUL = 0.97  # a setting helps if the need falls below this share


def advise(scenario: Scenario, prediction: Prediction) -> list[str]:
    """One line per remedy. Remedies are judged by their expected sizes, whatever `prediction` was made from."""
    before = _lack(predict_expected(scenario.changed()))
    found, useful = [], []
    for change in _changes(scenario):
        after = _predict(scenario, change)
        if not after.short():
            found.append(f"{_text(change)}: fits{_need(after)}")
        elif _lack(after) < USEFUL * before:
            useful.append(change)
    if not found and len(useful) > 1:
        found.append(_together(scenario, useful))
    narrow = [
        modality.model_copy(update={"dim": min(modality.dim, NARROW)}) for modality in scenario.manifest.modalities
    ]
    if narrow != scenario.manifest.modalities:
        after = predict_expected(scenario.changed(manifest=scenario.manifest.model_copy(update={"modalities": narrow})))
        if not after.short():
            found.append(f"prepared again with --pca {NARROW}: fits{_need(after)}")
    ranks = scenario.ranks
    while (ranks := 2 * ranks) <= MOST_RANKS and not any("disk" in lack for lack in prediction.short()):
        after = predict_expected(on_ranks(scenario, ranks))
        if not after.short():
            parts = "" if scenario.root is None else f", prepared with --parts {ranks}"
            found.append(f"{ranks} ranks{parts}: fits{_need(after)}")
            break
    return found or ["no single setting, nor all of them, makes it fit on this machine"]


def _changes(scenario: Scenario) -> Iterator[dict[str, object]]:
    """Settings that take less memory or disk."""
    settings = scenario.settings
    if scenario.mode == "exact":
        yield {"propagation.mode": "sampled"}
    else:
        yield {"propagation.fanouts": [max(2, n // 2) if n > 0 else 10 for n in settings.propagation.fanouts]}
        yield {"propagation.fanouts": [2]}
    yield {"train.batch_size": max(256, settings.train.batch_size // 4)}
    yield {"machine.prefetch": 0}
    if settings.evaluate.users is None or settings.evaluate.test_users is None:
        yield {"evaluate.users": 100_000, "evaluate.test_users": 100_000}
    if settings.tables.name in ("adam", "adagrad"):
        yield {"tables.name": "rowwise_adagrad"}
    if settings.model.dim > 32:
        yield {"model.dim": 32}
    if settings.run.keep > 1:
        yield {"run.keep": 1}
    if scenario.hardware.device == "cuda" and settings.model.encoder_precision == "float32":
        yield {"model.encoder_precision": "bfloat16"}


def _predict(scenario: Scenario, change: dict[str, object]) -> Prediction:
    tree = scenario.settings.model_dump()
    for key, value in change.items():
        section, name = key.split(".")
        tree[section][name] = value
    return predict_expected(scenario.changed(settings=Settings.model_validate(tree)))


def _together(scenario: Scenario, useful: list[dict[str, object]]) -> str:
    """All changes that help, one after the other, until it fits."""
    together: dict[str, object] = {}
    for change in useful:
        together |= change
        after = _predict(scenario, together)
        if not after.short():
            return f"{_text(together)}: fits{_need(after)}"
    return f"{_text(together)}: helps, but not enough{_need(after)}"


def _text(change: dict[str, object]) -> str:
    """As on the command line."""
    return " ".join(f"{key}={str(value).replace(' ', '')}" for key, value in change.items())


def _lack(prediction: Prediction) -> float:
    """The largest ratio of need to what is available."""
    return max(need / max(available, 1) for _, need, available in prediction.needs)


def _need(prediction: Prediction) -> str:
    device = f", {prediction.device / GIB:,.1f} GiB device" if prediction.device else ""
    hours = prediction.epoch_seconds / 3600
    return f" ({prediction.host / GIB:,.1f} GiB host{device} per rank, epoch {hours:,.1f} h)"
