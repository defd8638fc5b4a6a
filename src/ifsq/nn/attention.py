"""Multi-head self-attention with a fused projection, rotary positions and a preallocated cache.

Called by both generators: causal and cached in the autoregressive one, full in the diffusion one.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.nn.embed import Rotary
from ifsq.nn.norm import RMSNorm

QK_NORM_EPS = 1e-6


def head_width(width: int, heads: int) -> int:
    """Width of one head. Raises ValueError where the heads do not share the width evenly."""
    if width < 1 or heads < 1 or width % heads:
        raise ValueError(f"width={width}: expected a positive multiple of heads={heads}")
    return width // heads


class KVCache:
    """Keys and values of the positions seen so far, allocated once for ``length`` positions at the first `append`.

    What it hands out are views of the filled prefix: nothing is copied and nothing unfilled is attended to.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.filled = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(
        self, k: Float[Tensor, "b n t e"], v: Float[Tensor, "b n t e"]
    ) -> tuple[Float[Tensor, "b n s e"], Float[Tensor, "b n s e"]]:
        """Store the keys and values of the next t positions; returns those of all positions so far."""
        if self._keys is None or self._values is None:
            shape = (*k.shape[:2], self.length, k.shape[3])
            self._keys, self._values = k.new_empty(shape), v.new_empty(shape)
        end = self.filled + k.shape[2]
        if end > self.length:
            raise ValueError(f"position {end} of a cache of length {self.length}")
        self._keys[:, :, self.filled : end] = k
        self._values[:, :, self.filled : end] = v
        self.filled = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def keep_first(self, rows: int) -> None:
        """Go on with the first ``rows`` sequences of the batch alone."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[:rows], self._values[:rows]


class Attention(nn.Module):
    """Self-attention. Input and output (b, t, width).

    bias     of both projections
    qk_norm  RMS-normalise every query and key head, with a learned scale, before the rotary positions
    """

    def __init__(self, width: int, heads: int, *, bias: bool, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)
        per_head = head_width(width, heads)
        self.q_norm = RMSNorm(per_head, eps=QK_NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(per_head, eps=QK_NORM_EPS) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b t width"],
        rope: Rotary | None = None,
        *,
        causal: bool = False,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b t width"]:
        """With a cache, x holds the next position (t = 1, or more while the cache is empty) and sees all before it."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 of b n t e
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            start = cache.filled if cache is not None else 0
            q, k = rope(q, start), rope(k, start)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a norm may answer in float32
        if cache is not None:
            k, v = cache.append(k, v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal and q.shape[2] > 1)
        return self.proj(out.transpose(1, 2).flatten(2))  # b t width
