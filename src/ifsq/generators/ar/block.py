"""The pre-norm transformer block of LlamaGen (arXiv 2406.06525)."""

from jaxtyping import Float
from torch import Tensor, nn

from ifsq.generators.ar.config import ARConfig
from ifsq.nn.attention import Attention
from ifsq.nn.cache import KVCache
from ifsq.nn.droppath import DropPath
from ifsq.nn.embed import Rotary
from ifsq.nn.mlp import SwiGLU
from ifsq.nn.norm import RMSNorm

NORM_EPS = 1e-5


class Block(nn.Module):
    """Causal attention and SwiGLU, each behind an RMSNorm and added to the stream. Input and output (b, t, width).

    drop_path  share of the images for which neither adds anything in training
    """

    def __init__(self, config: ARConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = RMSNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, config.heads, bias=False, qk_norm=config.qk_norm, kv_heads=config.kv_heads)
        self.ffn_norm = RMSNorm(width, eps=NORM_EPS)
        self.feed_forward = SwiGLU(width, config.mlp_width, bias=False)
        self.attention_dropout = nn.Dropout(config.dropouts.residual)
        self.ffn_dropout = nn.Dropout(config.dropouts.mlp)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b t width"], rope: Rotary, cache: KVCache | None = None
    ) -> Float[Tensor, "b t width"]:
        attended = self.attention(self.attention_norm(x), rope, causal=True, cache=cache)
        x = x + self.drop_path(self.attention_dropout(attended))
        return x + self.drop_path(self.ffn_dropout(self.feed_forward(self.ffn_norm(x))))
