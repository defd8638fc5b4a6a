"""Cells: how the interval (-1, 1) is cut into L levels, and where the lattice points lie. Three rules.

paper      round ``y * (L-1)/2``, as released: the two end cells are half as wide as the others. Even levels exist only
           with the original FSQ's tanh (arXiv 2309.15505), which shifts them; their lattice ends at 1 - 2/L
symmetric  the same cells for even levels too, points from -1 to 1 (arXiv 2411.19842; ``preserve_symmetry`` elsewhere)
equal      L cells of equal width, a point in the centre of each; any L

Every lattice point is ``(digit - c) / h`` with c and h whole or half numbers, so that it is the correctly rounded float
whoever computes it: a cached digit and a fresh code cannot disagree.
"""

import math
from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor

CELLS = ("paper", "symmetric", "equal")


def level_values(levels: Sequence[int], like: Tensor, axis: int = -1) -> float | Tensor:
    """Level counts as one number where all are equal, else a tensor that broadcasts along ``axis`` of ``like``."""
    if len(set(levels)) == 1:
        return float(levels[0])
    shape = [1] * like.ndim
    shape[axis] = len(levels)
    return torch.tensor(levels, dtype=torch.float32, device=like.device).view(shape)


def half_width(L: float | Tensor) -> float | Tensor:
    """``L // 2`` of float level counts."""
    return L // 2 if isinstance(L, float) else torch.div(L, 2, rounding_mode="floor")


def placement(L: float | Tensor, cells: str) -> tuple[float | Tensor, float | Tensor]:
    """c and h of the lattice points ``(digit - c) / h``; two neighbours are 1/h apart."""
    if cells == "equal":
        return (L - 1) / 2, L / 2
    if cells == "symmetric":
        return (L - 1) / 2, (L - 1) / 2
    return half_width(L), half_width(L)


def is_power_of_two(x: float | Tensor) -> TypeGuard[float]:
    """Whether it is one number, and a power of two, by which multiplying and dividing is exact.

    Never under a compiler: there it may be a symbol that stands for other numbers too, and `torch.rsub` with such a
    number loses its ``alpha``, see `compilers`.
    """
    return isinstance(x, float) and not torch.compiler.is_compiling() and math.frexp(x)[0] == 0.5


def divide_(x: Tensor, h: float | Tensor) -> Tensor:
    """``x /= h``; the reciprocal of a power of two is exact, and a product is the quicker instruction."""
    if is_power_of_two(h):
        return x.mul_(1 / h)
    return x.div_(h)


def packed_dtype(levels: Sequence[int]) -> torch.dtype:
    """Type in which digits are kept: uint8, or int32 where a dimension has more than 256 levels."""
    return torch.uint8 if max(levels) <= 256 else torch.int32


def digits_to_codes(digits: Tensor, levels: Sequence[int], cells: str, axis: int = -1) -> Tensor:
    """Integer digits, channels on ``axis`` -> float32 lattice points in [-1, 1], same shape."""
    c, h = placement(level_values(levels, digits, axis), cells)
    real = digits.to(torch.float32)
    if is_power_of_two(h):
        return torch.rsub(real, -c / h, alpha=-1 / h)  # exact, and one pass
    return (real - c).div_(h)


def codes_to_digits(
    codes: Tensor, levels: Sequence[int], cells: str, axis: int = -1, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Float codes, channels on ``axis`` -> digits of the nearest lattice point; any real value is accepted."""
    L = level_values(levels, codes, axis)
    c, h = placement(L, cells)
    digits = (codes.to(torch.float32) * h).add_(c).round_()
    digits = digits.clamp_(0.0, L - 1) if isinstance(L, float) else digits.clamp_(min=0.0).minimum(L - 1)
    return whole(digits, dtype)


def whole(x: Tensor, dtype: torch.dtype, shift: float | Tensor = 0.0) -> Tensor:
    """``x + shift``, whole numbers held as floats and from 0 to 255 where they become uint8, in the integer ``dtype``.

    torch converts floats to int16 many at a time and to uint8 one at a time (2.13, x86), which is five times slower.
    """
    if dtype != torch.uint8 or torch.compiler.is_compiling():
        return (x + shift).to(dtype)
    small = x.to(torch.int16)
    if isinstance(shift, Tensor):
        small.add_(shift.to(torch.int16))
    elif shift:
        small.add_(int(shift))
    return small.to(dtype)
