"""Which modalities an item has: those it lacks give no channel and no control point of the curve (docs/model.md).

Shapes: n items.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Presence = dict[str, Tensor]  # modality -> [n] bool


def presence(modalities: Iterable[str], missing: Mapping[str, Tensor]) -> Presence | None:
    """Which modalities count for each item.

    An item that lacks all of them is treated as one whose features are rows of zeros: all count, and its fused row has
    norm 1 like any other.

    Args:
        modalities: all of the data.
        missing: modality -> [n] bool, for those that items may lack.

    Returns:
        The mask of every modality; None if there is nothing that items may lack.
    """
    names = list(modalities)
    if not missing:
        return None
    some = next(iter(missing.values()))
    masks = {name: missing.get(name, torch.zeros_like(some)) for name in names}
    lacks_all = torch.stack(list(masks.values())).all(0)
    return {name: ~mask | lacks_all for name, mask in masks.items()}
