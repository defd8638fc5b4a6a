"""From latents to lattice points: the arithmetic of `FSQ`, and the choice of the code that computes it.

On CUDA one Triton kernel does all of it (`triton_kernels`). Elsewhere, and under a compiler, which writes such kernels
itself, it is done in few passes (`fused`).
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ifsq.quantizers import cells, fused
from ifsq.quantizers.bounds import FIXED, Bound, Clamp, Curve
from ifsq.quantizers.digits import digits_of_groups
from ifsq.quantizers.lattice import Lattice

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Rounding:
    """Rounds bounded latents to the points of a lattice, for all codebooks side by side on the channel axis.

    lattice    that of one codebook
    codebooks  how many there are
    original   whether to round as the first FSQ does: its tanh is a little wider than the levels, and shifted for even
               ones. Of ``paper`` cells alone

    Latents have the channels of all codebooks on ``axis``. The bound is passed in, because it belongs to a module,
    where its state is trained and saved; what is kept here are tables that can be made again.
    """

    def __init__(self, lattice: Lattice, codebooks: int = 1, original: bool = False) -> None:
        self.lattice, self.codebooks, self.original = lattice, codebooks, original
        self.levels = lattice.levels * codebooks  # of all channels
        self.packed = cells.packed_dtype(lattice.levels)
        self.has_indices = lattice.has_indices
        self._uniform = len(set(lattice.levels)) == 1
        # Not buffers: casting, averaging or `to_empty` would corrupt them, and with them the rounding.
        self._on_device: dict[torch.device, Tensor] = {}
        self._kernels: tuple[Any, Tensor, Any] | None = None

    def __call__(
        self, bound: Bound, rows: Float[Tensor, "..."], axis: int, with_digits: bool = True
    ) -> tuple[Float[Tensor, "..."], Int[Tensor, "..."] | None, Int[Tensor, "... n"] | None]:
        """Latents -> codes with a straight-through gradient, digits, and what a kernel says of the indices.

        Codes are float32, float64 where latents are, or the latents' type where a kernel computes them; digits are
        ``packed``, or None. Indices, one a group of every codebook on the last axis, come from a kernel alone, which
        computes them on the way.
        """
        if with_digits and self._has_kernels(bound, rows):
            return self._one_kernel(bound, rows, axis)
        rows = full(rows)
        return *self._few_passes(bound, rows, axis, self.packed if with_digits else None), None

    def round(
        self, bound: Bound, z: Float[Tensor, "..."], axis: int, dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "..."], Int[Tensor, "..."] | None]:
        """Latents, float32 or float64 -> codes of that type, straight through, and digits of the ``dtype``, if any."""
        steps = self._steps(z, axis)
        return fused.straight_through(self._unit(bound, z, axis, steps), steps, dtype)

    def unit(self, bound: Bound, z: Float[Tensor, "..."], axis: int) -> Float[Tensor, "..."]:
        """Latents, float32 or float64 -> where they lie in the interval that is cut into cells, [0, 1]."""
        return self._unit(bound, z, axis, self._steps(z, axis))

    def unrounded(self, bound: Bound, z: Float[Tensor, "..."], axis: int) -> Float[Tensor, "..."]:
        """Latents, float32 or float64 -> codes before rounding, differentiable.

        In [-1, 1], but for the first FSQ, whose tanh is a thousandth wider.
        """
        steps = self._steps(z, axis)
        u = self._unit(bound, z, axis, steps)
        if self.lattice.cells != "paper":
            return 2 * u - 1
        return ((u - 0.5) * steps.span - steps.offset) / cells.half_width(steps.L)

    def disturb(
        self,
        bound: Bound,
        codes: Float[Tensor, "..."],
        rows: Float[Tensor, "..."],
        axis: int,
        noise: float,
        skip: float,
    ) -> Float[Tensor, "..."]:
        """Codes of ``rows``, of which a share ``noise`` moves by up to half a cell; unrounded at the rate ``skip``."""
        codes, rows = full(codes), full(rows)
        if noise > 0:
            _, h = cells.placement(self._steps(rows, axis).L, self.lattice.cells)
            shift = (torch.rand_like(codes) - 0.5) / h
            moved = torch.where(torch.rand_like(codes) < noise, codes + shift, codes).clamp(-1, 1)
            codes = codes + (moved - codes).detach()  # at the ends too
        if skip > 0:
            skipped = torch.rand((), device=codes.device) < skip
            codes = torch.where(skipped, self.unrounded(bound, rows, axis), codes)
        return codes

    def _steps(self, rows: Tensor, axis: int) -> fused.Steps:
        L: float | Tensor
        if self._uniform:
            L = float(self.levels[0])  # made here: a compiler takes a module's integers as constants, not its floats
        else:
            shape = [1] * rows.ndim
            shape[axis] = -1
            L = self._level_tensor(rows.device).to(rows.dtype).view(shape)
        return fused.make_steps(self.levels, L, self.lattice.cells, self.original)

    def _level_tensor(self, device: torch.device) -> Tensor:
        """Level counts of all channels, float32; kept, for a copy to an accelerator waits for it."""
        if torch.compiler.is_compiling():
            return torch.tensor(self.levels, dtype=torch.float32, device=device)
        if device not in self._on_device:
            with torch.inference_mode(False):
                self._on_device[device] = torch.tensor(self.levels, dtype=torch.float32, device=device)
        return self._on_device[device]

    def _affine(
        self, bound: Curve, rows: Tensor, axis: int, steps: fused.Steps
    ) -> tuple[float | Tensor, float | Tensor]:
        """Slope and shift in front of the curve, with the original FSQ's shift of even levels."""
        slope, shift = bound.affine(rows.ndim, axis)
        if not self.original or all(L % 2 for L in self.levels):
            return slope, shift
        ratio = 2 * steps.offset / steps.span
        clamped = isinstance(bound, Clamp)
        if isinstance(ratio, float):
            return slope, ratio if clamped else slope * math.atanh(ratio)
        return slope, ratio if clamped else slope * torch.atanh(ratio)

    def _unit(self, bound: Bound, rows: Tensor, axis: int, steps: fused.Steps) -> Tensor:
        if not (self.original and isinstance(bound, Curve)):
            return bound.unit(rows, axis)
        slope, shift = self._affine(bound, rows, axis, steps)
        return fused.CURVES[bound.curve](rows * slope + shift)

    def _few_passes(
        self, bound: Bound, rows: Tensor, axis: int, dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor | None]:
        """Codes and digits by `fused`."""
        if not isinstance(bound, Curve):
            return self.round(bound, rows, axis, dtype)
        steps = self._steps(rows, axis)
        slope, shift = self._affine(bound, rows, axis, steps)
        return fused.quantize(rows, bound.curve, slope, shift, steps, dtype)

    def _has_kernels(self, bound: Bound, rows: Tensor) -> bool:
        return (
            rows.is_cuda
            and self.has_indices
            and isinstance(bound, Curve)
            and rows.dtype != torch.float64
            and not torch.compiler.is_compiling()
            and _triton_is_here()
        )

    def _one_kernel(self, bound: Bound, rows: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, digits and indices by `triton_kernels`."""
        from ifsq.quantizers import triton_kernels

        assert isinstance(bound, Curve)
        table, layout = self._kernel_table(bound, rows, axis)
        return triton_kernels.quantize(rows, axis, bound.curve, self.lattice.cells, table, layout, self.packed)

    def _kernel_table(self, bound: Curve, rows: Tensor, axis: int) -> tuple[Tensor, Any]:
        """Parameters of every channel, float32 (channels, 8), and the layout of the indices."""
        from ifsq.quantizers.triton_kernels import Layout

        key = (rows.device, bound.name, getattr(bound, "alpha", None))
        kept = self._kernels
        if kept is not None and kept[0] == key and bound.name in FIXED:
            return kept[1], kept[2]
        with torch.inference_mode(False), torch.no_grad():
            L = self._level_tensor(rows.device)
            steps = fused.make_steps(self.levels, L, self.lattice.cells, self.original)
            slope, shift = self._affine(bound, L, 0, steps)
            c, h = cells.placement(L, self.lattice.cells)
            columns = (slope, shift, L, steps.span, steps.offset, c, h, steps.slope)
            table = torch.stack([x.float() if isinstance(x, Tensor) else torch.full_like(L, x) for x in columns], 1)
            if kept is not None and kept[0] == key:
                layout = kept[2]
            else:
                basis, starts = self._places()
                layout = Layout(torch.tensor(basis, device=L.device), torch.tensor(starts, device=L.device))
        self._kernels = (key, table, layout)
        return table, layout

    def _places(self) -> tuple[list[int], list[int]]:
        """Place value of every channel, and where the groups of all codebooks start."""
        basis, starts = [], [0]
        for part in digits_of_groups(self.lattice.levels, self.lattice.groups) * self.codebooks:
            places = [1]
            for base in list(part if self.lattice.digit_order == "little" else reversed(part))[:-1]:
                places.append(places[-1] * base)
            basis += places if self.lattice.digit_order == "little" else places[::-1]
            starts.append(len(basis))
        return basis, starts


def full(x: Tensor) -> Tensor:
    """float32, whatever the autocast; float64 stays."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@cache
def _triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None
