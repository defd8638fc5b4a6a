"""States of a network after some of its blocks, taken out of the pass that computes the loss."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Taps:
    """Keeps the states (b, t, width) after ``depths`` blocks while a network runs; 0 is what the first block reads."""

    def __init__(self, depths: Sequence[int]) -> None:
        self.depths = tuple(depths)
        self.states: dict[int, Tensor] = {}

    def keep(self, depth: int, state: Float[Tensor, "b t width"]) -> None:
        """Told of the state before the first block and after every one; keeps those that were asked for."""
        if depth in self.depths:
            self.states[depth] = state


class TrainingPass(NamedTuple):
    """What one pass through a generator gives in training; a named tuple, in which FSDP2 finds every tensor.

    losses     scalars by name, as of `Generator.loss`
    states     (b, t, width) after each depth that was asked for, differentiable, in the order in which the network
               reads the tokens
    positions  int64 (b, t): the row-major grid position that each state is about, the one it predicts; None: state i is
               about position i
    """

    losses: dict[str, Tensor]
    states: tuple[Float[Tensor, "b t width"], ...] = ()
    positions: Int[Tensor, "b t"] | None = None
