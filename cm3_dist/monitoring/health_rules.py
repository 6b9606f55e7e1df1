"""Signs that a run goes wrong, while it runs: each becomes one line with what it means and the setting that mends it.

Values that are not finite end a run (`monitor`), and so does lack of memory (`failures`); what is found here warns.
Limits come from runs that were made to fail, with the distance to sound runs given beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from cm3_dist.config.settings import Settings
from cm3_dist.training.sphere import Sphere

# Collapse: all rows in one place. Sound runs on Baby, TikTok and small data have an alignment near 1 and a uniformity
# below -1.5 t; with gamma = 0 Baby stands at .006 and -.01 t after an epoch, small data at .08 and -.13 t after five.
COLLAPSED_ALIGNMENT, COLLAPSED_UNIFORMITY = 0.1, -0.2  # the second times t
LIKE_RANDOM = 1.5  # times the recall of a random order
PATIENCE, ENOUGH_STEPS = 3, 1_000  # evaluations, or steps, before fused rows or a ranking are judged
# Mean cosine of two fused rows. With the calibrated loss it ends at .99 on Baby, without a gradient through phi at .05.
ALIKE = 0.9
TOO_LARGE = 1e15  # squares of such features leave float32


@dataclass(frozen=True)
class Cold:
    """How items without a training interaction are ranked among themselves."""

    recall: float  # @k, mean over users
    random: float  # of a random order
    k: int
    items: int


@dataclass(frozen=True)
class Signs:
    """What is known after an evaluation."""

    epoch: int
    step: int
    alignment: float  # means over the epoch's steps
    user_uniformity: float
    sphere: Sphere
    cold: Cold | None  # None: too few to judge


def warnings(signs: Signs, settings: Settings) -> dict[str, str]:
    """Sign -> the line to show."""
    found = {
        "collapse": _collapse(signs, settings),
        "sphere": _sphere(signs),
        "fused": _fused(signs, settings),
        "cold": _cold(signs),
    }
    return {name: line for name, line in found.items() if line}


def _collapse(signs: Signs, settings: Settings) -> str:
    floor = COLLAPSED_UNIFORMITY * settings.loss.t
    if signs.alignment > COLLAPSED_ALIGNMENT or signs.user_uniformity < floor:
        return ""
    mend = f"raise loss.gamma (now {_number(settings.loss.gamma)})"
    if settings.loss.t < 1:
        mend += f" or loss.t (now {settings.loss.t:g})"
    return (
        f"collapse: users and items move into one place (alignment {signs.alignment:.3f}, user_uniformity "
        f"{signs.user_uniformity:.3f}, sound is below {floor:g}); {mend}"
    )


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _sphere(signs: Signs) -> str:
    sphere = signs.sphere
    if not sphere.off:
        return ""
    name = max(sphere.off, key=lambda modality: sphere.off[modality])
    said = f"fused rows off the sphere: modality {name!r} gives {sphere.off[name]} of {sphere.items} items no direction"
    largest = sphere.largest[name]
    if largest > TOO_LARGE:
        return f"{said}; its features reach {largest:.1g}: scale them to about 1 and prepare the data again"
    return f"{said}; lower dense.lr"


def _fused(signs: Signs, settings: Settings) -> str:
    calibrated = settings.loss.item_uniformity == "calibrated" and settings.loss.phi_gradient
    alike = calibrated and signs.sphere.alike >= ALIKE
    if not alike or _early(signs):
        return ""
    return (
        f"fused channel emptied: the fused rows of all items are alike (mean cosine {signs.sphere.alike:.2f}), for the "
        "calibrated loss falls as they move together; if that costs Recall, loss.phi_gradient=false or "
        "loss.item_uniformity=plain keeps them apart"
    )


def _cold(signs: Signs) -> str:
    cold = signs.cold
    if cold is None or cold.recall > LIKE_RANDOM * cold.random or _early(signs):
        return ""
    return (
        f"cold items are ranked like random: recall@{cold.k} {cold.recall:.4f} among {cold.items} items without a "
        f"training interaction, {cold.random:.4f} at random; do their feature rows belong to them? Else raise "
        "propagation.item_item_layers, or --item-graph-k at preparation"
    )


def _early(signs: Signs) -> bool:
    return signs.epoch + 1 < PATIENCE and signs.step < ENOUGH_STEPS
