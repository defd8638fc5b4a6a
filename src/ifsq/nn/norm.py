"""Root-mean-square norm that takes its fused path under autocast too."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ifsq.nn.modes import is_transformed


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in the dtype of its scale: under autocast torch would warn and be slow."""

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        whole = self.weight.dtype in (torch.float32, torch.float64)  # in half precision torch computes in float32
        if x.device.type == "cpu" and whole and torch.is_grad_enabled() and not is_transformed():
            eps = torch.finfo(self.weight.dtype).eps if self.eps is None else self.eps
            return _RMSNorm.apply(x, self.weight, eps)
        return super().forward(x.to(self.weight.dtype))


class _RMSNorm(torch.autograd.Function):
    """The same in half the passes over memory, forward and backward: on a CPU torch composes it of ten operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.to(weight.dtype)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype)
        along = grad * unit
        level = (along @ weight)[..., None] / unit.shape[-1]
        out = torch.addcmul(grad * weight, unit, level, value=-1).mul_(scale)
        return out, along.flatten(0, -2).sum(0), None  # autograd casts to the input's type
