"""What a head is: it owns the loss of a token's groups and the draw of their indices.

Every head predicts group k from groups before it, so the product over groups is a distribution: negative
log-likelihoods of different heads, and of different groupings of the same digits, compare.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
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
        """Negative log-likelihood of the true indices under what `draw` draws, summed over the groups, float32."""

    @abstractmethod
    def loss(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"], rng: torch.Generator
    ) -> Float[Tensor, ""]:
        """What training minimises, nats a token: the mean of `nats`, or a bound that a head states."""

    @abstractmethod
    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        """Indices of one position; ``pick`` turns the logits of a group into its indices, group after group."""


class SoftmaxHead(Head):
    """A head with a softmax over the codes of each group."""

    @abstractmethod
    def before_output(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]
    ) -> list[Float[Tensor, "b t _"]]:
        """What the output layer of each group sees, given the true indices of groups before it."""

    def logits(self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]) -> list[Float[Tensor, "b t _"]]:
        """Logits (b, t, codes of the group) of each group, given the true indices of groups before it."""
        return [self.output[k](x) for k, x in enumerate(self.before_output(state, indices))]

    def nats(self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]) -> Float[Tensor, "b t"]:
        seen = self.before_output(state, indices)
        return torch.stack([self.output[k](x, indices[..., k]) for k, x in enumerate(seen)]).sum(dim=0)

    def loss(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"], rng: torch.Generator
    ) -> Float[Tensor, ""]:
        seen = self.before_output(state, indices)
        return torch.stack([self.output[k](x, indices[..., k], mean=True) for k, x in enumerate(seen)]).sum()
