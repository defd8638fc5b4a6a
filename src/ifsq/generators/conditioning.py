"""What a generator is told: the class label, with a null class for guidance, and the diffusion time.

Classifier-free guidance (arXiv 2207.12598) trains on a share of labels replaced by the null class ``num_classes``.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.nn.linear import Linear

TIME_FREQUENCIES = 256
TIME_PERIOD = 10000.0
GUIDANCE_SCHEDULES = ("constant", "linear", "power-cosine")
GUIDANCE_LIMIT = 1e30  # float32 then keeps nothing of the null class's logits, and a greater scale would overflow


class LabelEmbedding(nn.Module):
    """Embeds labels 0..num_classes-1 and the null class num_classes; int64 (b,) -> float (b, width)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, labels: Int[Tensor, "b"]) -> Float[Tensor, "b width"]:
        return self.embedding_table(labels)


class TimeEmbedding(nn.Module):
    """Embeds the time t in [0, 1], float (b,) -> (b, width): 128 cosines, 128 sines and a two-layer MLP (as DiT)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(TIME_FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b width"]:
        half = TIME_FREQUENCIES // 2
        rates = torch.exp(-math.log(TIME_PERIOD) / half * torch.arange(half, dtype=torch.float32, device=t.device))
        angles = t.to(torch.float32)[:, None] * rates
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


def drop_labels(labels: Int[Tensor, "b"], null: int, rate: float, rng: torch.Generator) -> Int[Tensor, "b"]:
    """Replace each label by ``null`` with probability ``rate``; drawn on the device of ``rng``."""
    drop = torch.rand(len(labels), generator=rng, device=rng.device) < rate
    return torch.where(drop.to(labels.device), null, labels)


def check_guidance(guidance: float | Sequence[float]) -> None:
    """Raise ValueError unless the guidance scale, or each of several, is a finite number of at least 0."""
    scales = guidance if isinstance(guidance, Sequence) else (guidance,)
    if not scales or not all(math.isfinite(scale) and scale >= 0 for scale in scales):
        shown = list(scales) if scales is guidance else guidance
        raise ValueError(f"guidance={shown}: expected a number of at least 0 (1 is no guidance)")


def guidance_rise(schedule: str, x: float, power: float) -> float:
    """How much of the way from no guidance to all of it is gone where x of the guided part is behind, x in [0, 1].

    constant      1
    linear        x
    power-cosine  ``(1 - cos(pi * x ** power)) / 2`` (RAR, arXiv 2411.00776, and its released code)
    """
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return x
    return (1 - math.cos(math.pi * x**power)) / 2
