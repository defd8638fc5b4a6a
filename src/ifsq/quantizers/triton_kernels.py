"""The quantizer as one CUDA kernel forward and one backward (Triton, which comes with CUDA builds of torch).

Forward reads the latents once, in their own type, and writes codes, digits and indices; backward reads gradient and
latents and computes the curve again, so that nothing but the input is kept. Reference and fallback: `fused`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ifsq.quantizers.bounds import refuse_second_derivative

BLOCK = 512

# Columns of the table of channel parameters.
SLOPE, SHIFT, LEVELS, SPAN, OFFSET, CENTRE, HALF, GRADIENT = range(8)


class Layout(NamedTuple):
    """How digits become indices: int64 place value of every channel, and where the groups start, (g + 1,)."""

    basis: Tensor
    starts: Tensor


def quantize(
    z: Tensor, axis: int, curve: str, cells: str, table: Tensor, layout: Layout, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of any floating type below 64 bits, channels on ``axis`` -> codes like them, digits, int64 indices.

    ``table`` is float32 (channels, 8) with the columns named above. Indices are (..., groups), channels' axis left out.
    """
    codes, digits, indices = _Quantize.apply(z, axis, curve, cells, table, layout, dtype)
    return codes, digits, indices


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, axis: int, curve: str, cells: str, table: Tensor, layout: Layout, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        z = _dense(z, axis)
        channels, inner = _shape(z, axis)
        tokens, groups = z.numel() // channels, len(layout.starts) - 1
        if not tokens:
            raise ValueError(f"latent of shape {tuple(z.shape)}: expected some")
        codes = torch.empty_like(z)
        digits = torch.empty_like(z, dtype=dtype)
        indices = torch.empty(*z.movedim(axis, -1).shape[:-1], groups, dtype=torch.int64, device=z.device)
        with _on(z):
            _forward[(triton.cdiv(tokens, BLOCK), groups)](
                z, table, layout.basis, layout.starts, codes, digits, indices, tokens, channels, inner, groups,
                curve, cells, BLOCK,
            )  # fmt: skip
        ctx.save_for_backward(z, table)
        ctx.axis, ctx.curve = axis, curve
        ctx.mark_non_differentiable(digits, indices)
        ctx.set_materialize_grads(False)
        return codes, digits, indices

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None, None, None, None]:
        if grad is None:
            return None, None, None, None, None, None, None
        refuse_second_derivative()
        z, table = ctx.saved_tensors
        channels, inner = _shape(z, ctx.axis)
        out = torch.empty_like(z)
        if grad.stride() != z.stride():
            grad = torch.empty_like(z, dtype=grad.dtype).copy_(grad)
        with _on(z):
            _backward[(triton.cdiv(z.numel(), BLOCK),)](
                grad, z, table, out, z.numel(), channels, inner, ctx.curve, BLOCK
            )
        return out, None, None, None, None, None, None


def _on(z: Tensor) -> AbstractContextManager[Any]:
    """Kernels start on the current device, which need not be the tensor's."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def _dense(z: Tensor, axis: int) -> Tensor:
    return z if z.is_contiguous() or z.movedim(axis, -1).is_contiguous() else z.contiguous()


def _shape(z: Tensor, axis: int) -> tuple[int, int]:
    """Channels, and the elements between two channels of a token."""
    channels = z.shape[axis]
    return channels, (z.shape[axis + 1 :].numel() if z.is_contiguous() and axis != -1 else 1)


@triton.jit
def _unit(x, curve: tl.constexpr):
    if curve == "logistic":
        u = tl.sigmoid(x)
    elif curve == "gaussian":
        u = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    else:
        u = 0.5 + 0.5 * tl.minimum(tl.maximum(x, -1.0), 1.0)
    return u


@triton.jit
def _forward(
    z, table, basis, starts, codes, digits, indices, tokens, channels, inner, groups,
    curve: tl.constexpr, cells: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    group = tl.program_id(1)
    inside = token < tokens
    base = token // inner * (channels * inner) + token % inner
    index = tl.zeros([block], tl.int64)
    for k in range(tl.load(starts + group), tl.load(starts + group + 1)):
        row = table + k * 8
        L = tl.load(row + 2)
        centre = tl.load(row + 5)
        x = tl.load(z + base + k * inner, mask=inside, other=0.0).to(tl.float32)
        u = _unit(x * tl.load(row) + tl.load(row + 1), curve)
        if cells == "paper":
            t = (u - 0.5) * tl.load(row + 3) - tl.load(row + 4)
            digit = (t + 12582912.0) - 12582912.0 + centre  # rounds half to even: floats of this size are integers
        elif cells == "symmetric":
            digit = tl.floor(u * (L - 1) + 0.5)
        else:
            digit = tl.floor(u * L)
        digit = tl.minimum(tl.maximum(digit, 0.0), L - 1)
        code = tl.math.div_rn(digit - centre, tl.load(row + 6))
        code = tl.where(x == x, code, x)  # NaN stays NaN, as in the eager form
        tl.store(codes + base + k * inner, code.to(codes.dtype.element_ty), mask=inside)
        tl.store(digits + base + k * inner, digit.to(tl.int32).to(digits.dtype.element_ty), mask=inside)
        index += digit.to(tl.int64) * tl.load(basis + k)
    tl.store(indices + token * groups + group, index, mask=inside)


@triton.jit
def _backward(grad, z, table, out, n, channels, inner, curve: tl.constexpr, block: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < n
    row = table + (place // inner) % channels * 8
    slope = tl.load(row)
    x = tl.load(z + place, mask=inside, other=0.0).to(tl.float32) * slope + tl.load(row + 1)
    if curve == "logistic":
        u = tl.sigmoid(x)
        steep = u * (1 - u)
    elif curve == "gaussian":
        steep = tl.exp(-0.5 * x * x) * 0.3989422804014327
    else:
        steep = tl.where(tl.abs(x) <= 1, 0.5, 0.0)
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (g * steep * slope * tl.load(row + 7)).to(out.dtype.element_ty), mask=inside)
