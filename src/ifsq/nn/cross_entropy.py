"""Cross-entropy behind a linear layer without the logits of all rows at once: they are made, used and dropped by parts.

Plain, the logits of n rows and v codes take 4 n v bytes, their softmax and its gradient as much again. Here no more
than `PART` logits exist at a time. The idea is that of torch's ``linear_cross_entropy`` with options (2.13), which is
not used: it is three times as slow on a CPU, and in bf16 it sums its losses in 8 bits (``docs/log.md``, ``findings/``).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

PART = 2**25  # logits at a time: 128 MiB in float32


def linear_nats(
    x: Float[Tensor, "... width"], weight: Float[Tensor, "v width"], target: Int[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Cross-entropy of each row's logits ``x @ weight.T``, in nats, float32; products in the type of autocast.

    target  0 to v - 1

    Rows of more than `PART` logits together take a part at a time; their gradient then computes the logits once more.
    """
    return _nats(x, weight, target, mean=False).view(target.shape)


def linear_mean_nats(
    x: Float[Tensor, "... width"], weight: Float[Tensor, "v width"], target: Int[Tensor, "..."]
) -> Float[Tensor, ""]:
    """The mean of `linear_nats`, whose gradient computes no logits again: it is made with the loss."""
    return _nats(x, weight, target, mean=True)


def _nats(x: Tensor, weight: Tensor, target: Tensor, *, mean: bool) -> Tensor:
    x, target = x.flatten(0, -2), target.flatten()
    if target.numel() * len(weight) <= PART:
        logits = F.linear(x, weight).to(torch.float32)
        return F.cross_entropy(logits, target, reduction="mean" if mean else "none")
    parted: Any = (_MeanNats if mean else _Nats).apply
    device, wanted = x.device.type, torch.is_grad_enabled()
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return parted(x, weight, target, x.dtype, wanted)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return parted(x, weight, target, dtype, wanted)


class _Nats(torch.autograd.Function):
    """Losses (n,) of rows (n, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype, wanted: bool) -> Tensor:
        ctx.save_for_backward(x, weight, target)
        ctx.dtype = dtype
        product, nats = weight.to(dtype), []
        for rows in _parts(len(x), len(weight)):
            logits = _logits(x[rows].to(dtype), product)
            true = logits.gather(1, target[rows, None])[:, 0]
            nats.append(_exponentials(logits) - true)
        return torch.cat(nats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, target = ctx.saved_tensors
        product, sums = weight.to(ctx.dtype), _Gradients(ctx, x, weight)
        for rows in _parts(len(x), len(weight)):
            part = x[rows].to(ctx.dtype)
            logits = _logits(part, product)
            _exponentials(logits)
            _less_the_true(logits, target[rows])
            sums.add(rows, logits.mul_(grad[rows, None]).to(ctx.dtype), part, product)
        return sums.x, sums.weight, None, None, None


class _MeanNats(torch.autograd.Function):
    """Mean loss of rows (n, width). Their number divides the gradient last: half precision has no room for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype, wanted: bool) -> Tensor:
        product, sums = weight.to(dtype), _Gradients(ctx, x, weight, wanted)
        total = x.new_zeros((), dtype=torch.float32)
        for rows in _parts(len(x), len(weight)):
            part = x[rows].to(dtype)
            logits = _logits(part, product)
            total -= logits.gather(1, target[rows, None]).sum()
            total += _exponentials(logits).sum()
            if sums.x is not None or sums.weight is not None:
                _less_the_true(logits, target[rows])
                sums.add(rows, logits.to(dtype), part, product)
        ctx.save_for_backward(sums.x, sums.weight)
        ctx.rows = len(x)
        return total / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.rows
        of_x, of_weight = (None if part is None else part * scale.to(part.dtype) for part in ctx.saved_tensors)
        return of_x, of_weight, None, None, None


class _Gradients:
    """Sums over the parts, in the type of what they are of; None of what needs no gradient."""

    def __init__(self, ctx: Any, x: Tensor, weight: Tensor, wanted: bool = True) -> None:
        self.x = torch.empty_like(x) if wanted and ctx.needs_input_grad[0] else None
        self.weight = torch.zeros_like(weight) if wanted and ctx.needs_input_grad[1] else None

    def add(self, rows: slice, of_logits: Tensor, x: Tensor, weight: Tensor) -> None:
        if self.x is not None:
            self.x[rows] = of_logits @ weight
        if self.weight is None:
            return
        if self.weight.dtype == x.dtype:
            torch.addmm(self.weight, of_logits.T, x, out=self.weight)  # counted as a product, which addmm_ is not
        else:
            self.weight += of_logits.T @ x


def _parts(rows: int, codes: int) -> Iterator[slice]:
    step = max(1, PART // codes)
    return (slice(start, start + step) for start in range(0, rows, step))


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight).to(torch.float32)


def _exponentials(logits: Tensor) -> Tensor:
    """Turns logits (r, v) into probabilities, in their place; returns the logarithms (r,) of the sums."""
    greatest = logits.amax(dim=1, keepdim=True)
    total = logits.sub_(greatest).exp_().sum(dim=1, keepdim=True)
    logits.div_(total)
    return (greatest + total.log())[:, 0]


def _less_the_true(probabilities: Tensor, target: Tensor) -> None:
    """The gradient of each row's loss by its logits, in place."""
    rows = torch.arange(len(target), device=target.device)
    probabilities[rows, target] -= 1
