"""The last layer of a generator of digits or indices."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.nn.cross_entropy import linear_mean_nats, linear_nats


class OutputLayer(nn.Linear):
    """The output layer of a digit or a group of digits: logits (..., v), or with the true indices their cross-entropy.

    The cross-entropy stands in the layer's own call, around which a sharded model gathers the weights.
    """

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__(width, vocab, bias=False)

    def forward(
        self, x: Float[Tensor, "*r width"], target: Int[Tensor, "*r"] | None = None, mean: bool = False
    ) -> Float[Tensor, "..."]:
        """Logits; with ``target`` nats (...), float32, or with ``mean`` their mean."""
        if target is None:
            return F.linear(x, self.weight)
        return (linear_mean_nats if mean else linear_nats)(x, self.weight, target)
