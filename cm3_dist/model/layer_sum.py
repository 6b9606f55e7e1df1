"""What each layer counts in the sum over layers: given, or learned from where it is given."""

from __future__ import annotations

import torch
from torch import nn

from cm3_dist.config.settings import Settings
from cm3_dist.graph.lightgcn import LayerWeights


class LayerSum(nn.Module):
    """Weights of E, A E, ..., A^L E, and of the item graph.

    Only the weights' ratios matter: the losses take normalised rows, and a common factor leaves every ranking as it is.
    Learned ones are the softmax of logits times what the given ones sum to, so that they stay positive and their sum
    stays where it was.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        model = settings.model
        given = model.layer_weights
        if given is None and model.learn_layer_weights:
            given = [1.0] * (settings.propagation.user_item_layers + 1)
        self.item_graph = model.item_graph_weight
        self.total = sum(given or [])
        self.given: torch.Tensor | None
        self.register_buffer("given", None if given is None else torch.tensor(given), persistent=False)
        logits = self.given.log() if self.given is not None and model.learn_layer_weights else None
        self.logits = None if logits is None else nn.Parameter(logits)

    def forward(self) -> LayerWeights:
        """As the propagation takes them."""
        weights = self.given if self.logits is None else torch.softmax(self.logits, 0) * self.total
        return LayerWeights(weights, self.item_graph)
