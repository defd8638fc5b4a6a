"""Bound, rounding and straight-through gradient in few passes over memory.

Forward: one tensor is kept for the gradient (the logistic's own value, from which its slope follows; for the other
curves the input), everything else happens in place. Backward: two passes. Under CUDA both are one Triton kernel where
Triton is there (`triton_kernels`); the eager form is the reference for it, the fallback, and what torch.compile,
torch.export and ONNX trace.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ifsq.quantizers.bounds import CURVES, refuse_second_derivative
from ifsq.quantizers.cells import divide_, half_width, is_power_of_two, placement, whole


class Steps(NamedTuple):
    """From a bounded latent u in [0, 1] to digits; every entry is one number or a tensor along the channels.

    ``paper``: ``round((2u - 1) * span/2 - offset) + L//2``; ``symmetric``: ``floor(u*(L-1) + 1/2)``; ``equal``:
    ``floor(u*L)``.
    """

    cells: str
    L: float | Tensor
    span: float | Tensor
    offset: float | Tensor
    largest: int  # of the level counts

    @property
    def slope(self) -> float | Tensor:
        """Derivative of the code by u, straight through the rounding."""
        return 2.0 if self.cells != "paper" else self.span / half_width(self.L)


def make_steps(levels: Sequence[int], L: float | Tensor, cells: str, original: bool) -> Steps:
    """Steps of a cell rule for level counts ``levels``; ``L`` is the same as one number or as a tensor.

    ``original`` is the first FSQ's form, a little wider and shifted for even levels.
    """
    if not original:
        return Steps(cells, L, L - 1, 0.0, max(levels))
    # Of one number the parity is asked of the integer: a compiler may hold the other as a symbol, and has no remainder.
    even = 1 - L % 2 if isinstance(L, Tensor) else 1.0 - levels[0] % 2
    # A thousandth wider, to reach the end levels. A literal: a compiler makes a symbol of a global number.
    return Steps(cells, L, (L - 1) * 1.001, 0.5 * even, max(levels))


def quantize(
    z: Tensor, curve: str, slope: float | Tensor, shift: float | Tensor, steps: Steps, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """Latents, float32 or float64, any shape -> codes, same shape and type, and digits of the integer type ``dtype``.

    Without a ``dtype`` there are no digits.
    The bound is ``curve(slope*z + shift)``, see `bounds.CURVES`. The gradient is that of the unrounded bound; there is
    none of second order.
    """
    codes, digits = _Quantize.apply(z, curve, slope, shift, steps, dtype)
    return codes, digits


def straight_through(u: Tensor, steps: Steps, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    """Latents that another function has bounded, u in [0, 1] -> codes and digits as `quantize` gives them."""
    codes, digits = _Round.apply(u, steps, dtype)
    return codes, digits


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        curve: str,
        slope: float | Tensor,
        shift: float | Tensor,
        steps: Steps,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None]:
        x = z
        if not (isinstance(slope, float) and slope == 1.0):
            x = x * slope
        if not (isinstance(shift, float) and shift == 0.0):
            x = x + shift if x is z else x.add_(shift)
        u = x.sigmoid_() if curve == "logistic" and x is not z else CURVES[curve](x)
        ctx.curve, ctx.slope, ctx.steps = curve, slope, steps
        keep = ctx.needs_input_grad[0]
        if keep:
            ctx.save_for_backward(u if curve == "logistic" else x)
        codes, digits = _to_lattice(u, steps, dtype, in_place=not (keep and curve == "logistic"))
        codes = _keep_nan(codes, z)
        _only_codes_have_gradients(ctx, digits)
        return codes, digits

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None, None, None]:
        if grad is None:
            return None, None, None, None, None, None
        refuse_second_derivative()
        (kept,) = ctx.saved_tensors
        if ctx.curve == "logistic":
            grad = torch.ops.aten.sigmoid_backward(grad, kept)
        elif ctx.curve == "gaussian":
            grad = kept.square().mul_(-0.5).exp_().mul_(grad).mul_(1 / math.sqrt(2 * math.pi))
        else:
            grad = (kept.abs() <= 1) * grad * 0.5
        return grad.mul_(ctx.slope * ctx.steps.slope), None, None, None, None, None


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, steps: Steps, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        ctx.slope = steps.slope
        codes, digits = _to_lattice(u, steps, dtype, in_place=False)
        codes = _keep_nan(codes, u)
        _only_codes_have_gradients(ctx, digits)
        return codes, digits

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        refuse_second_derivative()
        return None if grad is None else grad * ctx.slope, None, None


def _only_codes_have_gradients(ctx: Any, digits: Tensor | None) -> None:
    if digits is not None:
        ctx.mark_non_differentiable(digits)
    ctx.set_materialize_grads(False)  # no zeros for the digits


def _keep_nan(codes: Tensor, source: Tensor) -> Tensor:
    """Keep NaN as NaN: in a compiler's graph codes come from digits, which would turn it into a valid code."""
    return torch.where(source != source, source, codes) if torch.compiler.is_compiling() else codes


def _to_lattice(u: Tensor, steps: Steps, dtype: torch.dtype | None, in_place: bool) -> tuple[Tensor, Tensor | None]:
    """u in [0, 1] -> codes and digits; ``in_place`` overwrites u with the codes."""
    L = steps.L
    c, h = placement(L, steps.cells)
    if steps.cells == "paper":
        # (u - 1/2) * span rounds exactly like the released ((2u - 1) * span/2): the factors 2 are exact. So is a span
        # that is a power of two, which the paper's levels have, and then one pass does it.
        span = steps.span
        if is_power_of_two(span):
            t = torch.rsub(u, -span / 2, alpha=-span)
        else:
            t = (u.sub_(0.5) if in_place else u - 0.5).mul_(span)
        if not (isinstance(steps.offset, float) and steps.offset == 0.0):
            t.sub_(steps.offset)
        t.round_()
        if steps.largest > 500:  # there the widened tanh would round beyond the last level
            _clamp_(t.add_(c), L).sub_(c)
        digits = None if dtype is None else whole(t, dtype, c)
    else:
        if steps.cells == "symmetric":
            t = (u.mul_(L - 1) if in_place else u * (L - 1)).add_(0.5)
        else:
            t = u.mul_(L) if in_place else u * L
        _clamp_(t.floor_(), L)
        digits = None if dtype is None else whole(t, dtype)
        t.sub_(c)
    if digits is not None and torch.compiler.is_compiling():
        # A compiled loop over indices then reads the small digits again, not the large codes.
        t = digits.to(t.dtype) - c
    return divide_(t, h), digits


def _clamp_(t: Tensor, L: float | Tensor) -> Tensor:
    return t.clamp_(0.0, L - 1) if isinstance(L, float) else t.clamp_(min=0.0).copy_(torch.minimum(t, L - 1))
