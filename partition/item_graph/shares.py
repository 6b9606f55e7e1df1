"""How the weight of the item graph is shared by the modalities that an item has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def neighbour_shares(
    weights: Mapping[str, float], missing: Mapping[str, np.ndarray], items: int
) -> dict[str, np.ndarray]:
    """Factors of the modalities' weights: the weight of those that an item lacks goes to those that it has.

    An item without any modality of weight above 0 keeps all weights; its rows are zeros, so that its neighbours are
    itself.

    Args:
        weights: modality -> weight in the item graph.
        missing: modality -> [items] bool: the items that lack it; modalities that no item lacks may be left out.
        items: their number.

    Returns:
        Modality -> [items] float64: 0 where the item lacks it, 1 where it lacks none, else above 1.
    """
    there = {name: ~missing[name] if name in missing else np.ones(items, bool) for name in weights}
    total = sum((np.full(items, weight) for weight in weights.values()), np.zeros(items))
    had = sum((np.where(there[name], weight, 0.0) for name, weight in weights.items()), np.zeros(items))
    nothing = had == 0
    factor = total / np.where(nothing, 1, had)
    return {name: np.where(nothing, 1.0, np.where(mask, factor, 0.0)) for name, mask in there.items()}
