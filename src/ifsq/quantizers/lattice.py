"""The lattice of a quantizer: how many levels a dimension has, where their points lie, and how digits become indices.

The digits are what is stored; an autoregressive model sees their indices, a diffusion model and the decoder their
codes. Both views are computed from the same integers, so that "the same tokens" is a fact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ifsq.quantizers import cells as points
from ifsq.quantizers import digits as mixed_radix

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CODEBOOK = "codebook"  # in place of a cell rule: a digit is the number of a vector that the quantizer keeps


@dataclass(frozen=True)
class Lattice:
    """Points of a quantizer, and the order in which they are counted.

    levels       level count of every dimension
    groups       sizes of the groups of dimensions that share one index
    digit_order  ``little`` or ``big``, within a group
    cells        ``paper``, ``symmetric`` or ``equal``: where the points lie. ``codebook``: each digit is the number
                 of a code in a codebook that is not here, an index of its own, as VQ's one digit; it has no codes
    scale        what the points in [-1, 1] are multiplied by: 1, or 1/sqrt(d) for BSQ

    Raises ValueError on anything else.
    """

    levels: tuple[int, ...]
    groups: tuple[int, ...]
    digit_order: str
    cells: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        mixed_radix.check_layout(self.levels, self.groups, self.digit_order)
        if self.cells not in (*points.CELLS, CODEBOOK):
            raise ValueError(f"cells={self.cells!r}: expected one of {', '.join((*points.CELLS, CODEBOOK))}")
        if self.cells == CODEBOOK and len(self.groups) != len(self.levels):
            raise ValueError(
                f"cells={self.cells!r} with levels={list(self.levels)}, groups={list(self.groups)}: expected groups of"
                " one number each"
            )
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale}: expected a positive number")

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Codes of each group: what one index ranges over, Python integers of any size."""
        return mixed_radix.group_sizes(self.levels, self.groups)

    @property
    def has_indices(self) -> bool:
        """Whether the index of every group fits an int64."""
        return max(self.group_sizes) <= mixed_radix.MAX_CODEBOOK

    @property
    def has_codes(self) -> bool:
        """Whether digits have codes without the quantizer."""
        return self.cells != CODEBOOK

    def digits_to_codes(self, digits: Int[Tensor, "..."], axis: int = -1) -> Float[Tensor, "..."]:
        """Integer digits, dimensions on ``axis`` -> float32 points in [-scale, scale], same shape.

        Raises ValueError where the codes are in a codebook.
        """
        codes = points.digits_to_codes(digits, self.levels, self._cells(), axis)
        return codes if self.scale == 1 else codes * self.scale

    def codes_to_digits(
        self, codes: Float[Tensor, "..."], axis: int = -1, dtype: torch.dtype = torch.int64
    ) -> Int[Tensor, "..."]:
        """Real codes, dimensions on ``axis``, on the lattice or not -> digits of the nearest point, same shape.

        Raises ValueError where the codes are in a codebook.
        """
        unit = codes if self.scale == 1 else codes / self.scale
        return points.codes_to_digits(unit, self.levels, self._cells(), axis, dtype)

    def digits_to_indices(self, digits: Int[Tensor, "..."], axis: int = -1) -> Int[Tensor, "..."]:
        """Integer digits, dimensions on ``axis`` -> int64 indices without it; several groups on a new last axis.

        Raises ValueError where a group has more than 2**63 codes.
        """
        return mixed_radix.digits_to_indices(digits, self.levels, self.groups, self.digit_order, axis)

    def indices_to_digits(
        self, indices: Int[Tensor, "..."], axis: int = -1, dtype: torch.dtype = torch.int64
    ) -> Int[Tensor, "..."]:
        """Inverse of `digits_to_indices`: integer indices (...), or (..., g) with several groups -> digits."""
        return mixed_radix.indices_to_digits(indices, self.levels, self.groups, self.digit_order, axis, dtype)

    def _cells(self) -> str:
        if not self.has_codes:
            raise ValueError(
                f"digits of a codebook of {' + '.join(map(str, self.levels))} codes: expected its tokenizer, which"
                " keeps them"
            )
        return self.cells
