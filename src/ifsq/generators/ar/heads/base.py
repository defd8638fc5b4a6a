"""What a head is: it owns the loss of a token's groups and the draw of their indices.

Every head predicts group k from the groups before it, so the product over groups is exact.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Pick = Callable[[Tensor, int], Tensor]  # logits (r, v) of a group, and which -> indices (r,)


class Head(nn.Module, ABC):
    """The distribution of a token's indices given the trunk's state at its position.

    output  the last layers, which start at zero: a fresh head finds all indices alike
    """

    output: nn.ModuleList

    @abstractmethod
    def nats(self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]) -> Float[Tensor, "b t"]:
        """Negative log-likelihood of the true indices, summed over the groups of each token, float32."""

    @abstractmethod
    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        """Indices of one position; ``pick`` turns the logits of a group into its indices."""


class SoftmaxHead(Head):
    """A head with a softmax over the codes of each group."""

    @abstractmethod
    def logits(self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]) -> list[Float[Tensor, "b t _"]]:
        """Logits (b, t, codes of the group) of each group, given the true indices of the groups before it."""

    def nats(self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]) -> Float[Tensor, "b t"]:
        nats = [
            F.cross_entropy(logits.to(torch.float32).movedim(-1, 1), indices[..., k], reduction="none")
            for k, logits in enumerate(self.logits(state, indices))
        ]
        return torch.stack(nats).sum(dim=0)
