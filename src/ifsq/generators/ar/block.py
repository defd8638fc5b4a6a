"""The pre-norm transformer block of LlamaGen (arXiv 2406.06525)."""

from jaxtyping import Float
from torch import Tensor, nn

from ifsq.nn.attention import Attention
from ifsq.nn.cache import KVCache
from ifsq.nn.embed import Rotary
from ifsq.nn.mlp import SwiGLU
from ifsq.nn.norm import RMSNorm

NORM_EPS = 1e-5


class Block(nn.Module):
    """Causal attention and SwiGLU, each behind an RMSNorm and added to the stream. Input and output (b, t, width)."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads, bias=False)
        self.ffn_norm = RMSNorm(width, eps=NORM_EPS)
        self.feed_forward = SwiGLU(width, mlp_width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b t width"], rope: Rotary, cache: KVCache | None = None
    ) -> Float[Tensor, "b t width"]:
        x = x + self.dropout(self.attention(self.attention_norm(x), rope, causal=True, cache=cache))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))
