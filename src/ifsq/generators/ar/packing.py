"""Linear layers for inference on a CPU, their weights laid out as its kernels read them.

A step of decoding multiplies a few rows by every weight, so its time is the time that the weights take to be read:
oneDNN's blocks are read at the memory's own rate, which the rows of `nn.Linear` are not; bfloat16 and int8 are half and
a quarter of the bytes.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from ifsq.generators.trunk.output import OutputLayer
from ifsq.nn.linear import Linear

INT8_MOST = 127
INT8_BLOCK = 32  # inputs that torch's int8 kernel takes at a time; it reads past the end of others
SMALL = 2**18  # weights of a layer up to which a call of oneDNN may cost more than it saves
LITTLE = 2**19  # products of a call up to which it does: 2 rows of 256 x 1024, 64 of 128 x 64

M = TypeVar("M", bound=nn.Module)
Pack = Callable[[Float[Tensor, "n m"], Float[Tensor, "n"] | None], "PackedLinear"]


class PackedLinear(nn.Module, ABC):
    """``x @ weight.T + bias`` without a gradient; any float type in, float32 out.

    dtype  of the products' inputs and of what `raw` and `gated` give
    """

    dtype: torch.dtype

    @abstractmethod
    def raw(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        """The layer, in its own type."""

    def silu(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        """``silu`` of the layer, in its own type."""
        return F.silu(self.raw(x), inplace=True)

    def times(self, x: Float[Tensor, "... m"], other: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """The layer times ``other``, which is of its own type, as is the product."""
        return self.raw(x).mul_(other)

    def plus(self, x: Float[Tensor, "... m"], other: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """The layer added to ``other``, float32."""
        return other + self.raw(x)

    def forward(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        return self.raw(x).to(torch.float32)


class OneDNNLinear(PackedLinear):
    """Weights in oneDNN's blocks, float32 or bfloat16; what follows a product is computed while it is in registers."""

    def __init__(self, weight: Float[Tensor, "n m"], bias: Float[Tensor, "n"] | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), None)
        self._bias = None if bias is None else bias.to(dtype)
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self._join = torch.ops.mkldnn._linear_pointwise.binary

    def raw(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        return self._run(x.to(self.dtype), self._weight, self._bias, "none", [], "")

    def silu(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        return self._run(x.to(self.dtype), self._weight, self._bias, "swish", [], "")

    def times(self, x: Float[Tensor, "... m"], other: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        return self._join(x.to(self.dtype), other, self._weight, self._bias, "mul")

    def plus(self, x: Float[Tensor, "... m"], other: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        if self.dtype != torch.float32:
            return super().plus(x, other)
        return self._join(x, other, self._weight, self._bias, "add")


class SmallLinear(OneDNNLinear):
    """Float32 weights in oneDNN's blocks and where they are as well: few rows are multiplied without it."""

    def __init__(self, weight: Float[Tensor, "n m"], bias: Float[Tensor, "n"] | None) -> None:
        super().__init__(weight, bias, torch.float32)
        self._rows = weight.to(self.dtype)

    def raw(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        return F.linear(x.to(self.dtype), self._rows, self._bias) if self._is_little(x) else super().raw(x)

    def silu(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        return PackedLinear.silu(self, x) if self._is_little(x) else super().silu(x)

    def times(self, x: Float[Tensor, "... m"], other: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        return PackedLinear.times(self, x, other) if self._is_little(x) else super().times(x, other)

    def plus(self, x: Float[Tensor, "... m"], other: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        return PackedLinear.plus(self, x, other) if self._is_little(x) else super().plus(x, other)

    def _is_little(self, x: Tensor) -> bool:
        return x.numel() * len(self._rows) <= LITTLE


class Int8Linear(PackedLinear):
    """Weights as int8 with a scale an output channel; inputs are bfloat16."""

    dtype = torch.bfloat16

    def __init__(self, weight: Float[Tensor, "n m"], bias: Float[Tensor, "n"] | None) -> None:
        super().__init__()
        self._weight, self._scale = quantize_rows(weight)
        self._bias = None if bias is None else bias.to(self.dtype)

    def raw(self, x: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        rows = x.to(self.dtype).reshape(-1, x.shape[-1])
        out = torch.ops.aten._weight_int8pack_mm(rows, self._weight, self._scale)
        out = out if self._bias is None else out + self._bias
        return out.view(*x.shape[:-1], -1)


class PackedOutput(nn.Module):
    """An `OutputLayer` in packed form."""

    def __init__(self, packed: PackedLinear) -> None:
        super().__init__()
        self.packed = packed

    def forward(
        self, x: Float[Tensor, "*r width"], target: Int[Tensor, "*r"] | None = None, mean: bool = False
    ) -> Float[Tensor, "..."]:
        """As there."""
        logits = self.packed(x)
        if target is None:
            return logits
        nats = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)
        return nats.mean() if mean else nats


def quantize_rows(weight: Float[Tensor, "n m"]) -> tuple[Int8[Tensor, "n m"], Float[Tensor, "n"]]:
    """Whole numbers of -127..127 and a bfloat16 scale a row: ``numbers * scale`` is within half a scale of the row."""
    weight = weight.to(torch.float32)
    scale = (weight.abs().amax(dim=1) / INT8_MOST).to(torch.bfloat16)
    steps = torch.where(scale == 0, 1.0, scale.to(torch.float32))[:, None]  # a row of zeros stays one
    return (weight / steps).round_().clamp_(-INT8_MOST, INT8_MOST).to(torch.int8), scale


def has_bf16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packer(precision: str) -> Pack:
    """How layers are packed.

    ``fp32``  oneDNN's blocks; small layers also stay as they are, for few rows
    ``bf16``  oneDNN's blocks
    ``int8``  rows of int8; layers whose inputs do not come in blocks of 32 are bf16 where `has_bf16`, else fp32
    """
    other = torch.bfloat16 if precision != "fp32" and has_bf16() else torch.float32

    def pack(weight: Float[Tensor, "n m"], bias: Float[Tensor, "n"] | None) -> PackedLinear:
        if precision == "fp32" and weight.numel() <= SMALL:
            return SmallLinear(weight, bias)
        if precision == "int8" and weight.shape[1] % INT8_BLOCK == 0:
            return Int8Linear(weight, bias)
        return OneDNNLinear(weight, bias, other)

    return pack


def packed_copy(module: M, pack: Pack) -> M:
    """The module for inference: its linear layers packed, everything else its own.

    It shares all other tensors with the module, which stays as it is.
    """
    twin = _copied(module, pack, {})
    assert isinstance(twin, type(module)), "a linear layer alone is packed by `pack`"
    return twin


def _copied(module: nn.Module, pack: Pack, made: dict[int, nn.Module]) -> nn.Module:
    if id(module) in made:  # a module may stand in several places
        return made[id(module)]
    if type(module) is nn.Linear or type(module) is Linear:
        twin: nn.Module = pack(module.weight.detach(), None if module.bias is None else module.bias.detach())
    elif type(module) is OutputLayer:
        twin = PackedOutput(pack(module.weight.detach(), None))
    else:
        twin = copy.copy(module)
        twin._modules = {
            name: None if child is None else _copied(child, pack, made) for name, child in module._modules.items()
        }
    twin.training = False
    made[id(module)] = twin
    return twin
