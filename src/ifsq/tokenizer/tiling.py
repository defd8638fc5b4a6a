"""Encoder and decoder on tiles of a large image, blended where the tiles overlap.

All tiles of an image have one size. They are spread evenly, so neighbours share at least the overlap, and each counts
with a weight that falls linearly over what it shares. The memory beside input and result is that of one tile.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Size and overlap of tiles in cells (positions of a code), both of a side.

    Raises ValueError unless 0 <= 2 * overlap <= size.
    """

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= 2 * self.overlap <= self.size:
            raise ValueError(f"overlap={self.overlap} of tiles of {self.size} cells: expected 0 to half a tile")

    @classmethod
    def of_pixels(cls, tile: int, overlap: int | None, factor: int) -> "Tiling":
        """Tiles given in pixels, multiples of ``factor``; overlap None: a quarter of the tile, rounded down."""
        if tile < 1 or tile % factor:
            raise ValueError(f"tile={tile}: expected a positive multiple of the tokenizer's factor {factor}")
        if overlap is None:
            overlap = tile // 4 // factor * factor
        if overlap % factor or not 0 <= 2 * overlap <= tile:
            raise ValueError(
                f"overlap={overlap}: expected a multiple of the tokenizer's factor {factor}, 0 to half of tile={tile}"
            )
        return cls(tile // factor, overlap // factor)

    def starts(self, length: int) -> list[int]:
        """First cell of every tile along a side of ``length`` cells."""
        if length <= self.size:
            return [0]
        count = -(-(length - self.overlap) // (self.size - self.overlap))
        return [i * (length - self.size) // (count - 1) for i in range(count)]

    def windows(self, length: int, scale: int) -> Iterator[tuple[int, Float[Tensor, " n"]]]:
        """First cell of every tile, and its weights at ``scale`` values a cell: at each place they sum to one."""
        starts, side = self.starts(length), min(self.size, length) * scale
        weights = torch.ones(len(starts), side)
        for i, (left, right) in enumerate(pairwise(starts)):
            shared = side - (right - left) * scale
            if shared:
                ramp = (torch.arange(shared) + 0.5) / shared
                weights[i, side - shared :] *= 1 - ramp
                weights[i + 1, :shared] *= ramp
        total = torch.zeros(length * scale)
        for start, weight in zip(starts, weights, strict=True):
            total[start * scale : start * scale + side] += weight
        for start, weight in zip(starts, weights, strict=True):
            yield start, weight / total[start * scale : start * scale + side]


def tiled(
    apply: Callable[[Tensor], Tensor], x: Float[Tensor, "b c h w"], tiling: Tiling, scale_in: int, scale_out: int
) -> Float[Tensor, "b d H W"]:
    """``apply`` on every tile of ``x`` and the blend of what it returns.

    ``x`` has ``scale_in`` values a side of a cell, what ``apply`` returns has ``scale_out``. Float32, or float64.
    """
    height, width = (n // scale_in for n in x.shape[2:])
    out: Tensor | None = None
    for top, rows in tiling.windows(height, scale_out):
        for left, columns in tiling.windows(width, scale_out):
            part = apply(_cut(x, top, left, tiling.size, scale_in))
            if out is None:
                kind = torch.promote_types(part.dtype, torch.float32)
                out = part.new_zeros(*part.shape[:2], height * scale_out, width * scale_out, dtype=kind)
            weight = rows.to(out)[:, None] * columns.to(out)
            _cut(out, top, left, tiling.size, scale_out).add_(part * weight)
    assert out is not None  # there is at least one tile
    return out


def _cut(x: Tensor, top: int, left: int, size: int, scale: int) -> Tensor:
    return x[..., top * scale : (top + size) * scale, left * scale : (left + size) * scale]
