"""Warning signs of a run that goes wrong: each becomes one line with its meaning and the setting that helps.

These rules only warn. Values that are not finite end a run (nonfinite.py), and so does lack of memory
(distributed/oom_advice.py). Limits come from runs that were made to fail; comments give the distance to sound runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from cm3_dist.config.settings import Settings

# Collapse: all rows in one place. Sound runs on Baby, TikTok and small data have an alignment near 1 and a uniformity
# below -1.5 t; with gamma = 0 Baby is at 0.006 and -0.01 t after an epoch, small data at 0.08 and -0.13 t after five.
COLLAPSED_ALIGNMENT, COLLAPSED_UNIFORMITY = 0.1, -0.2  # the second times t
LIKE_RANDOM = 1.5  # times the recall of a random order
PATIENCE, ENOUGH_STEPS = 3, 1_000  # evaluations, or steps, before fused rows or a ranking are judged
# Mean cosine of two fused rows. The calibrated loss ends at 0.99 on Baby; without a gradient through phi it is 0.05.
ALIKE = 0.9
TOO_LARGE = 1e15  # squares of such features overflow float32


@dataclass(frozen=True)
class Fusion:
    """The curve's control points and the fused rows of a sample of items, over all ranks."""

    items: int  # size of the sample
    off_sphere: dict[str, int]  # modality -> items whose control point is not of norm 1; only modalities with any
    largest: dict[str, float]  # modality -> largest absolute feature value
    cosine: float  # mean over pairs of fused rows


@dataclass(frozen=True)
class ColdItems:
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
    alignment: float  # mean over the epoch's steps, like the next one
    user_uniformity: float
    fusion: Fusion
    cold: ColdItems | None  # None: too few to judge


def warnings(signs: Signs, settings: Settings) -> dict[str, str]:
    """Name of each sign that is found -> the line to show."""
    lines = {
        "collapse": _collapse(signs, settings),
        "sphere": _off_sphere(signs.fusion),
        "fused": _emptied(signs, settings),
        "cold": _cold(signs),
    }
    return {name: line for name, line in lines.items() if line}


def _collapse(signs: Signs, settings: Settings) -> str:
    floor = COLLAPSED_UNIFORMITY * settings.loss.t
    if signs.alignment > COLLAPSED_ALIGNMENT or signs.user_uniformity < floor:
        return ""
    gamma = settings.loss.gamma
    remedy = f"raise loss.gamma (now {gamma if isinstance(gamma, str) else f'{gamma:g}'})"
    if settings.loss.t < 1:
        remedy += f" or loss.t (now {settings.loss.t:g})"
    return (
        f"collapse: users and items move into one place (alignment {signs.alignment:.3f}, user_uniformity "
        f"{signs.user_uniformity:.3f}, sound is below {floor:g}); {remedy}"
    )


def _off_sphere(fusion: Fusion) -> str:
    if not fusion.off_sphere:
        return ""
    name = max(fusion.off_sphere, key=lambda modality: fusion.off_sphere[modality])
    count, largest = fusion.off_sphere[name], fusion.largest[name]
    line = f"fused rows off the sphere: modality {name!r} gives {count} of {fusion.items} items no direction"
    if largest > TOO_LARGE:
        return f"{line}; its features reach {largest:.1g}: scale them to about 1 and prepare the data again"
    return f"{line}; lower dense.lr"


def _emptied(signs: Signs, settings: Settings) -> str:
    calibrated = settings.loss.item_uniformity == "calibrated" and settings.loss.phi_gradient
    if not calibrated or signs.fusion.cosine < ALIKE or _early(signs):
        return ""
    return (
        f"fused channel emptied: the fused rows of all items are alike (mean cosine {signs.fusion.cosine:.2f}), for "
        "the calibrated loss falls as they move together; if that costs Recall, loss.phi_gradient=false or "
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
