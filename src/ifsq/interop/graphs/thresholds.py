"""Digits by comparison: for every digit of a dimension the smallest float32 latent that gets it.

A bound is computed by functions whose last bits differ between runtimes (an exponential has no one right rounding), so
a latent near the boundary of two cells could get another digit elsewhere. What a quantizer does to one latent is a step
function all the same, and where its steps lie can be found once, to the last bit. Comparisons are exact everywhere.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.quantizers.bottleneck import Bottleneck
from ifsq.quantizers.lattice import Lattice

MOST_LEVELS = 2**16
"""Levels of a dimension above which there is no table: a quarter of a megabyte each."""
LOWEST = -(2**31)
WHOLE = 256
"""Latents at a time: torch computes what is left of whole vectors by other functions, whose last bits are others."""


def thresholds(quantizer: Bottleneck, lattice: Lattice) -> Float[Tensor, "d n"]:
    """Entry k - 1 of a dimension: the smallest float32 latent of digit k, 1 to L - 1; infinity where there is none.

    Found by halving all float32 numbers in their order. The digit of a latent must rise with it and depend on nothing
    else, as in every quantizer whose codes lie on a lattice.
    """
    dim, count = len(lattice.levels), max(lattice.levels) - 1
    digit = torch.arange(1, count + 1)
    below = ordered(torch.full((dim, count), -math.inf))
    at = ordered(torch.full((dim, count), math.inf))
    for _ in range(33):  # 2^32 numbers
        middle = torch.div(below + at, 2, rounding_mode="floor")
        inside = (middle > below) & (middle < at)
        latents = nn.functional.pad(floats(torch.where(inside, middle, 0)), (0, -count % WHOLE))
        codes = quantizer(latents.view(1, dim, 1, -1)).codes
        reached = lattice.codes_to_digits(codes, axis=1).view(dim, -1)[:, :count] >= digit
        at = torch.where(inside & reached, middle, at)
        below = torch.where(inside & ~reached, middle, below)
    return floats(at)


class Steps(nn.Module):
    """Latents (b, d, h, w) -> digits (b, d, h, w), int64: how many thresholds of its dimension a latent is not below.

    By halving, in as many look-ups as a digit has bits. NaN gets digit 0.
    """

    table: Tensor
    start: Tensor

    def __init__(self, table: Float[Tensor, "d n"]) -> None:
        super().__init__()
        dim, count = table.shape
        self.first = 1 << (count.bit_length() - 1)
        width = 2 * self.first - 1
        padded = torch.full((dim, width), math.inf)
        padded[:, :count] = table
        self.register_buffer("table", padded.view(-1, 1))
        self.register_buffer("start", (torch.arange(dim) * width - 1).view(1, -1, 1, 1))

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Int[Tensor, "b d h w"]:
        count = torch.zeros_like(latents, dtype=torch.int64)
        step = self.first
        while step:
            passed = nn.functional.embedding(count + (self.start + step), self.table).squeeze(-1) <= latents
            count = count + passed.to(torch.int64) * step
            step //= 2
        return count


def ordered(x: Tensor) -> Tensor:
    """Float32 numbers -> integers in the same order, int64; both zeros are 0."""
    bits = x.view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, LOWEST - bits, bits)


def floats(order: Tensor) -> Tensor:
    """Inverse of `ordered`."""
    return torch.where(order < 0, LOWEST - order, order).to(torch.int32).view(torch.float32)
