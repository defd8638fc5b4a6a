"""Finite scalar quantization: bound each dimension, round it to one of its levels, gradient straight through.

``FSQ(levels)`` is iFSQ (arXiv 2601.17124); ``bound="tanh"`` is FSQ (arXiv 2309.15505). Two cell rules:

- ``paper``: round ``bound(z) * (L-1)/2``. As released; the two end cells are half as wide as the others.
- ``equal``: L cells of equal width, the code is the cell's centre. Any L from 2 on, even too.

The lattice functions at the end are shared with ``codes.spec``, so a cached digit and a fresh code cannot disagree.
Called by ``tokenizer``; imports torch only.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ifsq.quantizers.bounds import IFSQ_ALPHA, make_bound
from ifsq.quantizers.digits import (
    check_indices,
    check_layout,
    digits_to_indices,
    group_sizes,
    indices_to_digits,
)

CELLS = ("paper", "equal")
TANH_EPS = 1e-3  # the original FSQ widens its tanh a little so that the end levels can be reached


@dataclass(frozen=True)
class Quantized:
    """What a quantizer returns; unpacks as ``codes, indices``.

    codes    like the input, float, lattice points in [-1, 1], straight-through gradient
    indices  int64, the input's shape without its channel axis, then codebooks and groups where there are several;
             None where a group has more than 2**63 codes
    digits   int64, channel axis last, each 0..L-1
    """

    codes: Tensor
    indices: Tensor | None
    digits: Tensor

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.codes, self.indices))


class FSQ(nn.Module):
    """Finite scalar quantizer without parameters (unless ``dim`` asks for projections).

    levels         level count L of every dimension
    bound          ``ifsq`` (default), ``tanh``, ``gaussian``, ``clamp``; see `bounds`
    alpha          slope of the ``ifsq`` bound
    cells          ``paper`` or ``equal``
    groups         sizes of the groups of dimensions that share one index; default: one group
    num_codebooks  codebooks side by side on the channel axis
    dim            width of the input; when it is not ``len(levels) * num_codebooks``, linear layers lead in and out
    channel_first  True: channels on axis 1; False: last; None (default): axis 1 for four and more axes, else last
    digit_order    ``little`` or ``big``, see `digits`

    Input (b, d, h, w), (b, t, d) or any leading shape, floating point; computed in float32 (float64 stays), whatever
    the autocast. Raises ValueError on a wrong width or dtype and, on CPU, on NaN and infinity.
    """

    _L: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        *,
        bound: str = "ifsq",
        alpha: float = IFSQ_ALPHA,
        cells: str = "paper",
        groups: Sequence[int] | None = None,
        num_codebooks: int = 1,
        dim: int | None = None,
        channel_first: bool | None = None,
        digit_order: str = "little",
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.groups = tuple(groups) if groups is not None else (len(self.levels),)
        check_layout(self.levels, self.groups, digit_order)
        if cells not in CELLS:
            raise ValueError(f"cells={cells!r}: expected one of {', '.join(CELLS)}")
        if num_codebooks < 1:
            raise ValueError(f"num_codebooks={num_codebooks}: expected at least 1")
        even = [L for L in self.levels if L % 2 == 0]
        if cells == "paper" and bound != "tanh" and even:
            raise ValueError(
                f"levels={list(self.levels)}: paper cells with bound={bound!r} need odd levels; use cells='equal'"
            )
        self.bound, self.alpha, self.cells, self.digit_order = bound, float(alpha), cells, digit_order
        self.num_codebooks, self.channel_first = num_codebooks, channel_first
        self._bound = make_bound(bound, alpha)
        width = len(self.levels) * num_codebooks
        self.dim = dim if dim is not None else width
        self.project_in = nn.Linear(self.dim, width) if self.dim != width else nn.Identity()
        self.project_out = nn.Linear(width, self.dim) if self.dim != width else nn.Identity()
        # Integers, so that module.bfloat16() leaves it alone: 257 is no bfloat16.
        self.register_buffer("_L", torch.tensor(self.levels), persistent=False)

    @property
    def codebook_size(self) -> int:
        """Codes of one codebook over all groups, a Python integer of any size."""
        return math.prod(self.levels)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Codes of each group: what one index ranges over."""
        return group_sizes(self.levels, self.groups)

    def forward(self, z: Tensor) -> Quantized:
        axis = self._channel_axis(z)
        self._check_input(z, axis)
        rows = self.project_in(z.movedim(axis, -1))
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        rows = rows.unflatten(-1, (self.num_codebooks, len(self.levels)))
        codes, digits = self._quantize(rows)
        out = self.project_out(codes.flatten(-2).to(z.dtype)).movedim(-1, axis)
        digits = digits.squeeze(-2) if self.num_codebooks == 1 else digits
        indices = self.digits_to_indices(digits) if max(self.group_sizes) <= 2**63 else None
        return Quantized(out, indices, digits)

    def bounded(self, z: Tensor) -> Tensor:
        """The latent before rounding, in cells (paper) or in (-1, 1) (equal); channels last, (..., d)."""
        L = self._L.to(z.dtype)
        if self.cells == "equal":
            return self._bound(z)
        if self.bound == "tanh":  # the original form reaches the ends and shifts even levels
            half = (L - 1) * (1 + TANH_EPS) / 2
            offset = 0.5 * (L % 2 == 0)
            return torch.tanh(z + torch.atanh(offset / half)) * half - offset
        return self._bound(z) * (L - 1) / 2

    def digits_to_codes(self, digits: Tensor) -> Tensor:
        """Integer digits (..., d) -> float32 codes (..., d) in [-1, 1], before any projection."""
        return digits_to_codes(digits, self.levels, self.cells)

    def codes_to_digits(self, codes: Tensor) -> Tensor:
        """Codes (..., d), channels last -> the nearest lattice point's digits (..., d), int64."""
        return codes_to_digits(codes, self.levels, self.cells)

    def digits_to_indices(self, digits: Tensor) -> Tensor:
        """Integer digits (..., d) -> int64 indices (...), or (..., g) with several groups."""
        return digits_to_indices(digits, self.levels, self.groups, self.digit_order)

    def indices_to_digits(self, indices: Tensor) -> Tensor:
        """Int64 indices (...) or (..., g) -> int64 digits (..., d). Raises ValueError (on CPU) outside the codebook."""
        if indices.device.type == "cpu" and not torch.compiler.is_compiling():
            check_indices(indices, self.levels, self.groups)
        return indices_to_digits(indices, self.levels, self.groups, self.digit_order)

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """Codes in the layout of `forward`'s output, before ``project_out`` -> indices as `forward` gives them."""
        rows = codes.movedim(self._channel_axis(codes), -1)
        if rows.shape[-1] != len(self.levels) * self.num_codebooks:
            raise ValueError(
                f"codes of shape {tuple(codes.shape)}: expected {len(self.levels) * self.num_codebooks} channels"
            )
        rows = rows.unflatten(-1, (self.num_codebooks, len(self.levels)))
        indices = self.digits_to_indices(self.codes_to_digits(rows))
        return indices.squeeze(-1 if len(self.groups) == 1 else -2) if self.num_codebooks == 1 else indices

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Indices as `forward` gives them -> its codes (after ``project_out`` where there is one), float32.

        The channel axis is the one `forward` would read: axis 1 for images ((b, h, w) indices), last for sequences.
        """
        codes = self.digits_to_codes(self.indices_to_digits(indices))
        codes = codes.flatten(-2) if self.num_codebooks > 1 else codes
        codes = self.project_out(codes)
        first = self.channel_first if self.channel_first is not None else codes.ndim >= 4
        return codes.movedim(-1, 1) if first else codes

    def extra_repr(self) -> str:
        bound = f"ifsq, alpha={self.alpha}" if self.bound == "ifsq" else self.bound
        return f"levels={list(self.levels)}, bound={bound}, cells={self.cells}, groups={list(self.groups)}"

    def _quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        y = self.bounded(rows)
        L = self._L.to(y.dtype)
        if self.cells == "equal":
            digits = ((y.detach() + 1) / 2 * L).floor().clamp(min=0).minimum(L - 1)
            return y + ((2 * digits + 1) / L - 1 - y).detach(), digits.to(torch.int64)
        half = torch.div(L, 2, rounding_mode="floor")
        rounded = y.detach().round()
        return (y + (rounded - y).detach()) / half, (rounded + half).to(torch.int64)

    def _channel_axis(self, x: Tensor) -> int:
        first = self.channel_first if self.channel_first is not None else x.ndim >= 4
        return 1 if first else x.ndim - 1

    def _check_input(self, z: Tensor, axis: int) -> None:
        if not z.is_floating_point():
            raise ValueError(f"latent of dtype {z.dtype}: expected a floating point type")
        if z.ndim < 2 or z.shape[axis] != self.dim:
            raise ValueError(f"latent of shape {tuple(z.shape)}: expected {self.dim} channels on axis {axis}")
        # Reading the values would stop an accelerator's queue, and a compiler cannot trace it.
        if z.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(torch.isfinite(z).all()):
            raise ValueError(f"latent of shape {tuple(z.shape)} holds NaN or infinity: expected finite values")


def digits_to_codes(digits: Tensor, levels: Sequence[int], cells: str) -> Tensor:
    """Integer digits (..., d) -> float32 lattice points (..., d) in [-1, 1].

    paper: ``(digit - L//2) / (L//2)`` (even levels of the original FSQ end at 1 - 2/L); equal: ``(2*digit + 1)/L - 1``.
    """
    L = torch.tensor(levels, dtype=torch.float32, device=digits.device)
    if cells == "equal":
        return (2 * digits.to(torch.float32) + 1) / L - 1
    half = torch.div(L, 2, rounding_mode="floor")
    return (digits.to(torch.float32) - half) / half


def codes_to_digits(codes: Tensor, levels: Sequence[int], cells: str) -> Tensor:
    """Float codes (..., d), channels last -> int64 digits of the nearest lattice point; any real value is accepted."""
    L = torch.tensor(levels, dtype=torch.float32, device=codes.device)
    codes = codes.to(torch.float32)
    if cells == "equal":
        digits = ((codes + 1) / 2 * L).floor()
    else:
        half = torch.div(L, 2, rounding_mode="floor")
        digits = (codes * half).round() + half
    return digits.clamp(min=0).minimum(L - 1).to(torch.int64)
