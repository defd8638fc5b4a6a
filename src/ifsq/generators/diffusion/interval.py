"""What a network of average velocities is told beside time and label."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """Over which times the velocity is averaged, and of which guidance.

    length    from t to ``t + length``, at most 1; 0 asks for the velocity at t
    guidance  scale, at least 1; None: 1
    """

    length: Float[Tensor, "b"]
    guidance: Float[Tensor, "b"] | None = None


def interval_of(x: Float[Tensor, "b *d"], length: float, guidance: float) -> Interval:
    """The same for every one of a batch."""
    return Interval(x.new_full((len(x),), length), x.new_full((len(x),), guidance))
