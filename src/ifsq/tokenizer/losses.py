"""Reconstruction losses of the tokenizer. Called by ``train``."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LossConfig:
    """Weights of the absolute and the squared error, both over images in [-1, 1]."""

    l1: float = 1.0
    l2: float = 1.0

    def __post_init__(self) -> None:
        if min(self.l1, self.l2) < 0 or self.l1 + self.l2 == 0:
            raise ValueError(f"l1={self.l1}, l2={self.l2}: expected weights of at least 0, one of them positive")


def reconstruction_loss(
    images: Float[Tensor, "b 3 H W"], reconstructed: Float[Tensor, "b 3 H W"], config: LossConfig
) -> dict[str, Tensor]:
    """``loss`` = l1 * mean |x - y| + l2 * mean (x - y)^2, with both parts beside it; computed in float32."""
    error = reconstructed.float() - images.float()
    l1, l2 = error.abs().mean(), error.square().mean()
    return {"loss": config.l1 * l1 + config.l2 * l2, "l1": l1, "l2": l2}
