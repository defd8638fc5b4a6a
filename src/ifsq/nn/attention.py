"""Multi-head self-attention with a fused projection and rotary positions: full, or causal and cached."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.nn.cache import KVCache
from ifsq.nn.embed import Rotary, RotaryAlong
from ifsq.nn.linear import Linear
from ifsq.nn.norm import RMSNorm

QK_NORM_EPS = 1e-6
SHORT = 256  # positions from which half precision is as fast as float32 in the gradient of attention


def head_width(width: int, heads: int) -> int:
    """Width of one head. Raises ValueError where the heads do not share the width evenly."""
    if width < 1 or heads < 1 or width % heads:
        raise ValueError(f"width={width}: expected a positive multiple of heads={heads}")
    return width // heads


class Attention(nn.Module):
    """Self-attention. Input and output (b, t, width).

    bias      of both projections
    qk_norm   RMS-normalise every query and key head, with a learned scale, before the rotary positions
    kv_heads  heads of keys and values, each for as many query heads that follow each other; None is ``heads``
    """

    def __init__(
        self, width: int, heads: int, *, bias: bool, qk_norm: bool = False, kv_heads: int | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise ValueError(f"kv_heads={kv_heads}: expected a divisor of heads={heads}")
        per_head = head_width(width, heads)
        self.qkv = Linear(width, (heads + 2 * self.kv_heads) * per_head, bias=bias)
        self.proj = Linear(width, width, bias=bias)
        self.q_norm = RMSNorm(per_head, eps=QK_NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(per_head, eps=QK_NORM_EPS) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b t width"],
        rope: Rotary | RotaryAlong | None = None,
        *,
        causal: bool = False,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b t width"]:
        """With a cache, x holds the next t positions, and each sees those before it and itself."""
        shares = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = self.qkv(x).unflatten(-1, (sum(shares), -1)).transpose(1, 2).split(shares, dim=1)  # 3 of b n t e
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            start = cache.position if cache is not None else 0
            q, k = rope(q, start), rope(k, start)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a norm may answer in float32
        new, mask = q.shape[2], None
        if cache is not None:
            k, v = cache.append(k, v)
            mask = cache.mask(new)
        out = _attend(q, k, v, mask, causal and new > 1 and mask is None)
        return self.proj(out.transpose(1, 2).flatten(2))  # b t width


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention of heads (b, n, t, e), in their type but where torch's gradient is faster in float32."""
    shared = k.shape[1] < q.shape[1]  # torch reads each head of keys and values where it lies, without copies
    if not _is_slow(q):
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=shared)
    whole = (q.float(), k.float(), v.float())
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(*whole, mask, is_causal=causal, enable_gqa=shared).to(v.dtype)


def _is_slow(q: Tensor) -> bool:
    """On a CPU half precision takes 3 times as long as float32 with 64 positions, 10 times with 16."""
    return (
        q.device.type == "cpu"
        and q.dtype in (torch.bfloat16, torch.float16)
        and torch.is_grad_enabled()
        and q.shape[2] < SHORT
    )
