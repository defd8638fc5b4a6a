"""The contract between tokenizer and generators: what a digit means, and the two exact views of the same digits.

A tokenizer writes digits; an autoregressive model sees indices, a diffusion model codes. Both views are computed here
from the same integers, so that "the same tokens" is a fact. Called by ``cache``, both generators and ``pipeline``.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.quantizers import cells as lattice
from ifsq.quantizers import digits as mixed_radix

CODEBOOK = "codebook"  # in place of a rule of cells: the one digit is the number of a vector that the tokenizer keeps


@dataclass(frozen=True)
class CodeSpec:
    """Layout of the digits of one tokenizer.

    levels       level count of every dimension
    groups       sizes of the groups of dimensions that share one index
    digit_order  ``little`` or ``big``, within a group
    cells        ``paper``, ``symmetric`` or ``equal``: where the lattice points lie. ``codebook`` for VQ: one digit,
                 the number of a code in the tokenizer's codebook; it has indices, but no codes here
    grid         height and width of the code grid
    scale        what the lattice in [-1, 1] is multiplied by: 1, or 1/sqrt(d) for BSQ
    """

    levels: tuple[int, ...]
    groups: tuple[int, ...]
    digit_order: str
    cells: str
    grid: tuple[int, int]
    scale: float = 1.0

    def __post_init__(self) -> None:
        mixed_radix.check_layout(self.levels, self.groups, self.digit_order)
        if self.cells not in (*lattice.CELLS, CODEBOOK):
            raise ValueError(f"cells={self.cells!r}: expected one of {', '.join((*lattice.CELLS, CODEBOOK))}")
        if self.cells == CODEBOOK and len(self.levels) != 1:
            raise ValueError(f"cells={self.cells!r} with levels={list(self.levels)}: expected one digit, the codes")
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid={self.grid}: expected a positive height and width")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale}: expected a positive number")

    @property
    def on_lattice(self) -> bool:
        """Whether digits have codes without the tokenizer."""
        return self.cells != CODEBOOK

    @property
    def dim(self) -> int:
        """Code dimensions d."""
        return len(self.levels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image's digits as they are stored, (h, w, d)."""
        return (*self.grid, self.dim)

    @property
    def tokens(self) -> int:
        """Grid positions of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Codes of each group: the class counts that an autoregressive head predicts."""
        return mixed_radix.group_sizes(self.levels, self.groups)

    @property
    def digit_dtype(self) -> torch.dtype:
        """uint8, or uint16 where a dimension has more than 256 levels. Raises ValueError above 65536."""
        if max(self.levels) > 65536:
            raise ValueError(f"levels={list(self.levels)}: a digit is stored in 16 bits; expected at most 65536")
        return torch.uint8 if max(self.levels) <= 256 else torch.uint16

    def digits_to_codes(self, digits: Int[Tensor, "b h w d"]) -> Float[Tensor, "b d h w"]:
        """Digits -> lattice points, float32, channels first: what the decoder and a diffusion model see.

        They lie in [-scale, scale]. Raises ValueError where the codes are in a codebook.
        """
        codes = lattice.digits_to_codes(digits, self.levels, self._lattice()).movedim(-1, 1)
        return codes if self.scale == 1 else codes * self.scale

    def codes_to_digits(self, codes: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w d"]:
        """Real codes, on the lattice or not -> int64 digits of the nearest lattice point.

        Raises ValueError where the codes are in a codebook.
        """
        unit = codes if self.scale == 1 else codes / self.scale
        return lattice.codes_to_digits(unit.movedim(1, -1), self.levels, self._lattice())

    def digits_to_indices(self, digits: Int[Tensor, "b h w d"]) -> Int[Tensor, "b h w g"]:
        """Digits -> int64 indices with the group axis kept (g = 1 too): what an autoregressive model sees."""
        indices = mixed_radix.digits_to_indices(digits, self.levels, self.groups, self.digit_order)
        return indices if len(self.groups) > 1 else indices.unsqueeze(-1)

    def indices_to_digits(self, indices: Int[Tensor, "b h w g"]) -> Int[Tensor, "b h w d"]:
        """Inverse of `digits_to_indices`; int64 digits."""
        inner = indices if len(self.groups) > 1 else indices.squeeze(-1)
        return mixed_radix.indices_to_digits(inner, self.levels, self.groups, self.digit_order)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for manifests and checkpoints; `ifsq.config.build` reads it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def differs_from(self, other: "CodeSpec") -> str:
        """The first difference in words, or an empty string: for the message of a refused pair."""
        for key, mine in self.to_dict().items():
            theirs = other.to_dict()[key]
            if mine != theirs:
                return f"{key} {mine} against {theirs}"
        return ""

    def _lattice(self) -> str:
        if not self.on_lattice:
            raise ValueError(
                f"digits of a codebook of {self.levels[0]} codes: expected its tokenizer, which keeps them"
            )
        return self.cells


@dataclass(frozen=True)
class LatentSpec:
    """Layout of continuous latents: ``dim`` channels on a grid of (height, width)."""

    dim: int
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if self.dim < 1 or len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"dim={self.dim}, grid={self.grid}: expected positive numbers")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image's latents as they are stored, (d, h, w)."""
        return (self.dim, *self.grid)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for manifests."""
        return {"dim": self.dim, "grid": list(self.grid)}
