"""Decoding on a CPU near the rate at which its memory can be read.

`FastSteps` is a copy of the network that can only decode: linear layers packed (see `packing`), the scales of norms
multiplied into them, the rotary turns of every position and head in one table that holds attention's scale too, keys
and values in buffers that are never copied, and a third of the operations. It draws what `PlainSteps` draws but for
rounding.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex64, Float, Int
from torch import Tensor, nn

from ifsq.config import InputError
from ifsq.generators.ar import packing
from ifsq.generators.ar.graphs import GraphSteps
from ifsq.generators.ar.heads.base import Pick
from ifsq.generators.ar.network import ARNetwork
from ifsq.generators.ar.packing import Pack, PackedLinear, packed_copy, packer
from ifsq.generators.ar.steps import PlainSteps, Steps
from ifsq.generators.trunk.block import Block
from ifsq.nn.attention import Attention
from ifsq.nn.linear import Linear
from ifsq.nn.mlp import SwiGLU
from ifsq.nn.norm import RMSNorm

STREAMED = 2**25  # bytes of float32 matrices that no cache of a processor holds: a step's time is to read them


def precision_of(network: ARNetwork, asked: str) -> str | None:
    """The precision of decoding, ``fp32``, ``bf16`` or ``int8``; None for that of the network's own modules.

    ``auto`` on a CPU is fp32 where the matrices are at most 32 MiB of float32, which caches hold, and bf16 above and
    where the weights are bfloat16, if the processor knows it; elsewhere the network's own. The rule sees no batch: an
    image does not depend on what is drawn beside it.

    Raises InputError on a precision that the network cannot be held in where it is; so is fp32 where its own modules
    compute in less.
    """
    obstacle = _obstacle(network)
    possible = ["auto"]
    if not obstacle or not _is_half(network):
        possible.append("fp32")
    if _can_capture(network) or (not obstacle and packing.has_bf16()):
        possible.append("bf16")
    if not obstacle:
        possible.append("int8")
    if asked not in possible:
        where = obstacle or "on a processor without bfloat16"
        raise InputError(f"precision={asked!r}: expected {' or '.join(possible)} {where}")
    if asked in ("bf16", "int8"):
        return asked
    if obstacle:
        return None
    numbers = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
    large = 4 * numbers > STREAMED or next(network.parameters()).dtype == torch.bfloat16
    return "bf16" if asked == "auto" and large and "bf16" in possible else "fp32"


def steps_of(network: ARNetwork, precision: str) -> Steps:
    """The fastest way through the network; ``precision`` as `precision_of` takes it."""
    used = precision_of(network, precision)
    if _can_capture(network):
        return GraphSteps(network, bf16=used == "bf16")
    if used is None:
        return PlainSteps(network)
    with torch.no_grad():
        if is_usual(network):
            return FastSteps(network, packer(used))
        return PlainSteps(packed_copy(network, packer(used)))


class FastSteps(Steps):
    """See the module. ``pack`` makes the linear layers of a network that `is_usual`."""

    def __init__(self, network: ARNetwork, pack: Pack) -> None:
        self.network = network
        self._blocks = [_Block.of(layer, pack) for layer in network.layers if isinstance(layer, Block)]
        self._head = packed_copy(network.head, pack)
        self._turns = _turns(network, self._blocks[0])
        self._position = 0
        self._past: list[Tensor] = []  # of each block, keys and values (2, r*kv, positions, e)

    def first(self, labels: Int[Tensor, "r"]) -> Float[Tensor, "r width"]:
        prefix = self.network.prefix(labels)
        x = self.network.add_target_positions(prefix, 0, prefix.shape[1] - 1).to(torch.float32)
        block = self._blocks[0]
        shape = (2, len(labels) * block.kv_heads, len(self._turns), block.per_head)
        self._position, self._past = 0, [x.new_empty(shape) for _ in self._blocks]
        return self._through(x)[:, -1]

    def next(self, indices: Int[Tensor, "r t g"]) -> Float[Tensor, "r t width"]:
        target = self._position - self.network.config.class_tokens + 1
        return self._through(self.network.add_target_positions(self.network.embed(indices), target).to(torch.float32))

    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        return self._head.draw(state, pick)

    def keep_first(self, rows: int) -> None:
        self._past = [past[:, : rows * self._blocks[0].kv_heads] for past in self._past]

    def rewind(self, tokens: int) -> None:
        self._position = self.network.config.class_tokens + tokens

    def _through(self, x: Float[Tensor, "r t width"]) -> Float[Tensor, "r t width"]:
        """The next t positions of every row, through all blocks."""
        shape, new = x.shape, x.shape[1]
        start, end = self._position, self._position + new
        mask = None
        if new > 1:
            later = torch.arange(end) > torch.arange(start, end)[:, None]
            mask = torch.zeros(new, end).masked_fill_(later, -torch.inf)
        turns = self._turns[start:end]
        x = x.flatten(0, 1)
        for block, past in zip(self._blocks, self._past, strict=True):
            x = block(x, turns, past, start, mask)
        self._position = end
        return x.view(shape)


@dataclass(frozen=True)
class _Norm:
    """``x / sqrt(mean(x^2) + eps)``, in four operations where torch composes ten."""

    eps: Tensor

    def __call__(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.eps, length, length, value=1 / x.shape[-1]).rsqrt_()


@dataclass(frozen=True)
class _Block:
    """One `Block` in the form that decodes.

    qk_scale  of normalised queries and keys (n+kv, e); None: they are not normalised
    """

    attention_norm: _Norm
    qkv: PackedLinear
    qk_norm: _Norm
    qk_scale: Tensor | None
    proj: PackedLinear
    mlp_norm: _Norm
    gate: PackedLinear
    value: PackedLinear
    down: PackedLinear
    heads: int
    kv_heads: int
    per_head: int

    @classmethod
    def of(cls, block: Block, pack: Pack) -> "_Block":
        attention, mlp = block.attention, block.feed_forward
        e = attention.proj.in_features // attention.heads
        n, k = attention.heads, attention.kv_heads
        gate, value = _behind(block.ffn_norm, mlp.w12).chunk(2)
        gate_bias, value_bias = (None, None) if mlp.w12.bias is None else mlp.w12.bias.chunk(2)
        q_norm, k_norm = attention.q_norm, attention.k_norm
        scale = None
        if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
            scale = torch.cat([q_norm.weight.expand(n, e), k_norm.weight.expand(k, e)]).to(torch.float32)
        return cls(
            attention_norm=_norm(block.attention_norm),
            qkv=pack(_behind(block.attention_norm, attention.qkv), attention.qkv.bias),
            qk_norm=_norm(q_norm),
            qk_scale=scale,
            proj=pack(attention.proj.weight, attention.proj.bias),
            mlp_norm=_norm(block.ffn_norm),
            gate=pack(gate, gate_bias),
            value=pack(value, value_bias),
            down=pack(mlp.w3.weight, mlp.w3.bias),
            heads=n,
            kv_heads=k,
            per_head=e,
        )

    def __call__(
        self,
        x: Float[Tensor, "rt width"],
        turns: Complex64[Tensor, "t n2k pairs"],
        past: Float[Tensor, "2 rk s e"],
        start: int,
        mask: Float[Tensor, "t end"] | None,
    ) -> Float[Tensor, "rt width"]:
        qkv = self.qkv(self.attention_norm(x))
        x = self.proj.plus(self._attend(qkv, turns, past, start, mask), x)
        h = self.mlp_norm(x).to(self.gate.dtype)
        return self.down.plus(self.value.times(h, self.gate.silu(h)), x)

    def _attend(
        self, qkv: Tensor, turns: Tensor, past: Tensor, start: int, mask: Tensor | None
    ) -> Float[Tensor, "rt width"]:
        t, n, k, e = len(turns), self.heads, self.kv_heads, self.per_head
        end, shared = start + t, n // k
        qkv = qkv.view(-1, t, n + 2 * k, e)  # r t n+2k e
        if self.qk_scale is not None:
            qkv[:, :, : n + k] = self.qk_norm(qkv[:, :, : n + k]).mul_(self.qk_scale)
        pairs = torch.view_as_complex(qkv.unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * turns).flatten(-2)  # values are turned by nothing
        r = len(turned)
        fresh = turned[:, :, n:].view(r, t, 2, k, e).permute(2, 0, 3, 1, 4)
        past[:, :, start:end].view(2, r, k, t, e).copy_(fresh)
        keys, values = past[:, :, :end]  # rk end e
        q = turned[:, :, :n].view(r, t, k, shared, e).permute(0, 2, 3, 1, 4).reshape(r * k, shared * t, e)
        scores = torch.bmm(q, keys.transpose(1, 2))  # rk shared*t end: heads that share keys are rows of one product
        if mask is not None:
            scores.view(-1, shared, t, end).add_(mask)
        seen = torch.bmm(scores.softmax(dim=-1), values)
        return seen.view(r, k, shared, t, e).permute(0, 3, 1, 2, 4).reshape(r * t, n * e)


def _norm(norm: nn.Module) -> _Norm:
    return _Norm(torch.tensor(norm.eps if isinstance(norm, RMSNorm) else 0.0))


def _behind(norm: RMSNorm, linear: nn.Linear) -> Float[Tensor, "n m"]:
    """Weights of a layer with the scale of the norm before it multiplied in."""
    return linear.weight.to(torch.float32) * norm.weight.to(torch.float32)


def _turns(network: ARNetwork, block: _Block) -> Complex64[Tensor, "s n2k pairs"]:
    """What each position multiplies pairs of queries, keys and values by; queries by attention's scale as well."""
    n, k = block.heads, block.kv_heads
    turns = torch.view_as_complex(network.rope.table)[:, None].repeat(1, n + 2 * k, 1)
    turns[:, :n] /= math.sqrt(block.per_head)
    turns[:, n + k :] = 1
    return turns


def is_usual(network: ARNetwork) -> bool:
    """Whether `FastSteps` knows all that the trunk does: another's own modules decode, between packed layers."""
    return not network.config.adaln and all(
        type(layer) is Block
        and type(layer.attention) is Attention
        and type(layer.feed_forward) is SwiGLU
        and {type(linear) for linear in _linears(layer)} == {Linear}
        and type(layer.attention_norm) is type(layer.ffn_norm) is RMSNorm
        and all(type(norm) in (RMSNorm, nn.Identity) for norm in (layer.attention.q_norm, layer.attention.k_norm))
        for layer in network.layers
    )


def _linears(block: Block) -> list[nn.Module]:
    """The layers that `_Block.of` packs."""
    return [block.attention.qkv, block.attention.proj, block.feed_forward.w12, block.feed_forward.w3]


def _can_capture(network: ARNetwork) -> bool:
    """Whether a CUDA graph can hold a step."""
    tensors = list(network.parameters())
    devices = {tensor.device for tensor in tensors}
    return (
        len(devices) == 1
        and devices.pop().type == "cuda"
        and not torch.is_autocast_enabled("cuda")
        and not _special(network)
    )


def _is_half(network: ARNetwork) -> bool:
    """Whether the network's own modules compute in less than float32."""
    tensors = list(network.parameters())
    device = tensors[0].device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return True
    return any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in tensors)


def _special(network: ARNetwork) -> str:
    """What keeps the network to its own modules, as the end of a sentence."""
    if not all(type(tensor) is nn.Parameter for tensor in network.parameters()):
        return "of sharded weights"
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()):
        return "of a network that hooks watch"
    return ""


def _obstacle(network: ARNetwork) -> str:
    """Why weights cannot be packed, as the end of a sentence; empty where they can."""
    tensors = list(network.parameters())
    where = {tensor.device.type for tensor in tensors} - {"cpu"}
    types = {tensor.dtype for tensor in tensors} - {torch.float32, torch.bfloat16}
    if where:
        return f"on {', '.join(sorted(where))}"
    if not torch.backends.mkldnn.is_available():
        return "in a torch without oneDNN"
    if torch.is_autocast_enabled("cpu"):
        return "under autocast"
    if types:
        return f"of weights in {', '.join(sorted(str(kind).removeprefix('torch.') for kind in types))}"
    return _special(network)
