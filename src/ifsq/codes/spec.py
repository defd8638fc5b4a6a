"""The contract between tokenizer and generators: what a digit means, and the two exact views of the same digits."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.quantizers.lattice import Lattice


@dataclass(frozen=True)
class CodeSpec:
    """Layout of the digits of one tokenizer: a `Lattice`, field by field, and a grid.

    levels       level count of every dimension
    groups       sizes of the groups of dimensions that share one index
    digit_order  ``little`` or ``big``, within a group
    cells        ``paper``, ``symmetric`` or ``equal``, or ``codebook``, as for VQ: digits that have an index, no code
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
        _ = self.lattice
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"grid={self.grid}: expected a positive height and width")

    @classmethod
    def of(cls, lattice: Lattice, grid: tuple[int, int]) -> "CodeSpec":
        """The layout of a lattice's digits on a grid."""
        return cls(**asdict(lattice), grid=grid)

    @cached_property
    def lattice(self) -> Lattice:
        """The lattice, without the grid."""
        return Lattice(self.levels, self.groups, self.digit_order, self.cells, self.scale)

    @property
    def on_lattice(self) -> bool:
        """Whether digits have codes without the tokenizer."""
        return self.lattice.has_codes

    @property
    def dim(self) -> int:
        """Code dimensions d."""
        return len(self.levels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image's digits as they are stored, (h, w, d)."""
        return (*self.grid, self.dim)

    @property
    def tokens(self) -> int:
        """Grid positions of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Codes of each group: the class counts that an autoregressive head predicts."""
        return self.lattice.group_sizes

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
        return self.lattice.digits_to_codes(digits).movedim(-1, 1)

    def codes_to_digits(self, codes: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w d"]:
        """Real codes, on the lattice or not -> int64 digits of the nearest lattice point.

        Raises ValueError where the codes are in a codebook.
        """
        return self.lattice.codes_to_digits(codes.movedim(1, -1))

    def digits_to_indices(self, digits: Int[Tensor, "b h w d"]) -> Int[Tensor, "b h w g"]:
        """Digits -> int64 indices with the group axis kept (g = 1 too): what an autoregressive model sees."""
        indices = self.lattice.digits_to_indices(digits)
        return indices if len(self.groups) > 1 else indices.unsqueeze(-1)

    def indices_to_digits(self, indices: Int[Tensor, "b h w g"]) -> Int[Tensor, "b h w d"]:
        """Inverse of `digits_to_indices`; int64 digits."""
        return self.lattice.indices_to_digits(indices if len(self.groups) > 1 else indices.squeeze(-1))

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for manifests and checkpoints; `ifsq.config.build` reads it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def differs_from(self, other: "CodeSpec | LatentSpec") -> str:
        """The first difference in words, or an empty string: for the message of a refused pair."""
        return _difference(self, other)


@dataclass(frozen=True)
class LatentSpec:
    """Layout of continuous latents: ``dim`` channels on a grid of (height, width)."""

    dim: int
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if self.dim < 1 or len(self.grid) != 2 or min(self.grid) < 1:
            raise ValueError(f"dim={self.dim}, grid={self.grid}: expected positive numbers")

    @property
    def tokens(self) -> int:
        """Grid positions of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image's latents as they are stored, (d, h, w)."""
        return (self.dim, *self.grid)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, for manifests."""
        return {"dim": self.dim, "grid": list(self.grid)}

    def differs_from(self, other: "CodeSpec | LatentSpec") -> str:
        """The first difference in words, or an empty string: for the message of a refused pair."""
        return _difference(self, other)


def _difference(mine: CodeSpec | LatentSpec, other: CodeSpec | LatentSpec) -> str:
    if type(mine) is not type(other):
        what = [f"latents of {one.dim} channels" if isinstance(one, LatentSpec) else "digits" for one in (mine, other)]
        return " against ".join(what)
    theirs = other.to_dict()
    return next((f"{key} {own} against {theirs[key]}" for key, own in mine.to_dict().items() if own != theirs[key]), "")
