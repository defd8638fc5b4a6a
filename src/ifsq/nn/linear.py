"""Linear layers whose float32 products take the fastest routine of the processor."""

import functools
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.nn.modes import is_transformed

LARGE = 2**17  # numbers of a weight from which the routine's choice pays; the layers of smaller models stay torch's


class Linear(nn.Linear):
    """`nn.Linear`, twice as fast in float32 on AMD processors with AVX-512, forward and backward.

    MKL, which multiplies torch's float32 matrices, takes AVX2 there; oneDNN, beside it in the same torch, AVX-512
    (``findings/torch_float32_matmul_amd.sh``). Sums are rounded otherwise, by some 1e-6 of the largest.
    """

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        if not _takes_onednn(x, self.weight):
            return super().forward(x)
        return _linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], -1)


@functools.cache
def multiplies_faster_by_onednn() -> bool:
    """Whether this is an AMD processor with AVX-512 and a torch with oneDNN."""
    cpuinfo = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and cpuinfo.exists()
        and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    )


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        weight.numel() >= LARGE
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and type(weight) in (nn.Parameter, Tensor)  # sharded and quantised ones bring a product of their own
        and not torch._C._len_torch_dispatch_stack()  # who counts or fakes operations knows torch's
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
        and multiplies_faster_by_onednn()
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` of matrices (rows, inputs) and (outputs, inputs), of any strides."""
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """The same with a gradient, which is of the same products and can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _linear(grad, weight.T, None) if of_x else None,
            _linear(grad.T, x.T, None) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
