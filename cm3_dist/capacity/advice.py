"""What would make a run fit that does not: settings, each alone where that is enough, else one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from cm3_dist.capacity.prediction import Prediction
from cm3_dist.capacity.scenario import Plan
from cm3_dist.config.settings import Settings

MOST_RANKS = 1 << 14
NARROW = 128  # PCA to this width, where features are wider


def advise(plan: Plan, prediction: Prediction) -> list[str]:
    """One line a way. Ways are judged by their expected sizes, whatever `prediction` was made from."""
    found, steps = [], [(text, changed) for text, changed in _settings(plan)]
    before = _lack(plan.changed(plan.settings).expected())
    useful = []
    for text, settings in steps:
        after = plan.changed(settings).expected()
        if not after.short():
            found.append(f"{text}: fits{_need(after)}")
        elif _lack(after) < 0.97 * before:
            useful.append((text, settings))
    if not found and len(useful) > 1:
        found += _together(plan, useful)
    found += _narrow(plan)
    ranks = plan.machine.ranks
    while (ranks := 2 * ranks) <= MOST_RANKS and not any("disk" in lack for lack in prediction.short()):
        after = plan.changed(plan.settings, ranks=ranks).expected()
        if not after.short():
            parts = "" if plan.root is None else f", prepared with --parts {ranks}"
            found.append(f"{ranks} ranks{parts}: fits{_need(after)}")
            break
    return found or ["no single setting, nor all of them, makes it fit on this machine"]


def _settings(plan: Plan) -> Iterator[tuple[str, Settings]]:
    """Settings that take less memory or disk, with how they are written."""
    settings, cuda = plan.settings, plan.machine.device == "cuda"
    halved = [max(2, fanout // 2) if fanout > 0 else 10 for fanout in settings.propagation.fanouts]
    ways: list[dict[str, object]] = []
    if plan.mode == "exact":
        ways.append({"propagation.mode": "sampled"})
    elif plan.mode == "sampled":
        ways.append({"propagation.fanouts": halved})
        ways.append({"propagation.fanouts": [2]})
    ways.append({"train.batch_size": max(256, settings.train.batch_size // 4)})
    ways.append({"machine.prefetch": 0})
    if settings.evaluate.users is None or settings.evaluate.test_users is None:
        ways.append({"evaluate.users": 100_000, "evaluate.test_users": 100_000})
    if settings.tables.name in ("adam", "adagrad"):
        ways.append({"tables.name": "rowwise_adagrad"})
    if settings.model.dim > 32:
        ways.append({"model.dim": 32})
    if settings.run.keep > 1:
        ways.append({"run.keep": 1})
    if cuda and settings.model.encoder_precision == "float32":
        ways.append({"model.encoder_precision": "bfloat16"})
    for way in ways:
        yield " ".join(f"{key}={str(value).replace(' ', '')}" for key, value in way.items()), _with(settings, way)


def _with(settings: Settings, way: dict[str, object]) -> Settings:
    tree = settings.model_dump()
    for key, value in way.items():
        section, name = key.split(".")
        tree[section][name] = value
    return Settings.model_validate(tree)


def _together(plan: Plan, useful: list[tuple[str, Settings]]) -> list[str]:
    """All settings that help, one after the other, until it fits."""
    settings, said = plan.settings, []
    for text, changed in useful:
        settings = _merged(settings, plan.settings, changed)
        said.append(text)
        after = plan.changed(settings).expected()
        if not after.short():
            return [f"{' '.join(said)}: fits{_need(after)}"]
    return [f"{' '.join(said)}: helps, but not enough{_need(after)}"]


def _merged(settings: Settings, before: Settings, changed: Settings) -> Settings:
    """`settings` with what distinguishes `changed` from `before`."""
    tree, old, new = settings.model_dump(), before.model_dump(), changed.model_dump()
    for section, values in new.items():
        if isinstance(values, dict):
            for name, value in values.items():
                if value != old[section][name]:
                    tree[section][name] = value
    return Settings.model_validate(tree)


def _narrow(plan: Plan) -> list[str]:
    wide = [modality.name for modality in plan.manifest.modalities if modality.dim > NARROW]
    if not wide:
        return []
    narrow = [modality.model_copy(update={"dim": min(modality.dim, NARROW)}) for modality in plan.manifest.modalities]
    after = plan.changed(plan.settings, modalities=narrow).expected()
    return [f"prepared again with --pca {NARROW}: fits{_need(after)}"] if not after.short() else []


def _lack(prediction: Prediction) -> float:
    """How far above what is there, in shares."""
    machine = prediction.machine
    return max(
        prediction.host / machine.host_memory,
        prediction.device / machine.memory,
        prediction.on_disk / max(machine.disk, 1),
    )


def _need(prediction: Prediction) -> str:
    gib = 2**30
    device = f", {prediction.device / gib:,.1f} GiB device" if prediction.device else ""
    return f" ({prediction.host / gib:,.1f} GiB host{device} a rank, epoch {prediction.epoch_seconds / 3600:,.1f} h)"
