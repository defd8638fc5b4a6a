"""The pre-norm transformer block of LlamaGen (arXiv 2406.06525)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ifsq.generators.trunk.config import TrunkConfig
from ifsq.nn.attention import Attention
from ifsq.nn.cache import KVCache
from ifsq.nn.droppath import DropPath
from ifsq.nn.embed import Rotary, RotaryAlong
from ifsq.nn.mlp import SwiGLU
from ifsq.nn.norm import RMSNorm

NORM_EPS = 1e-5
Modulation = Float[Tensor, "b 1 six_widths"]


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm and added to the stream. Input and output (b, t, width).

    drop_path  share of the images for which attention adds nothing in training, and the MLP likewise
    adaln      a condition shifts and scales what both are given and gates what they add; at first the gates are 0
    causal     whether a position sees those before it and itself alone, or all
    """

    not_hidden = ("adaLN_modulation",)  # of Muon, as in the diffusion generator
    recompute = False  # see `ifsq.training.parallel.recompute`

    def __init__(
        self, config: TrunkConfig, drop_path: float = 0.0, *, adaln: bool = False, causal: bool = True
    ) -> None:
        super().__init__()
        width = config.width
        self.causal = causal
        self.attention_norm = RMSNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, config.heads, bias=False, qk_norm=config.qk_norm, kv_heads=config.kv_heads)
        self.ffn_norm = RMSNorm(width, eps=NORM_EPS)
        self.feed_forward = SwiGLU(width, config.mlp_width, bias=False)
        self.attention_dropout = nn.Dropout(config.dropouts.residual)
        self.ffn_dropout = nn.Dropout(config.dropouts.mlp)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)) if adaln else None

    def forward(
        self,
        x: Float[Tensor, "b t width"],
        rope: Rotary | RotaryAlong,
        cache: KVCache | None = None,
        condition: Float[Tensor, "b width"] | None = None,
        modulation: Modulation | None = None,
    ) -> Float[Tensor, "b t width"]:
        """With ``adaln`` one of the last two is given.

        modulation  what `modulated_by` makes of the condition, where one serves many calls
        """
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._run, x, rope, cache, condition, modulation, use_reentrant=False)
        return self._run(x, rope, cache, condition, modulation)

    def modulated_by(self, condition: Float[Tensor, "b width"]) -> Modulation:
        """Shift, scale and gate of attention, then of the MLP. Of a block with ``adaln``."""
        assert self.adaLN_modulation is not None
        return self.adaLN_modulation(condition)[:, None]

    def _run(
        self,
        x: Tensor,
        rope: Rotary | RotaryAlong,
        cache: KVCache | None,
        condition: Tensor | None,
        modulation: Tensor | None,
    ) -> Tensor:
        if self.adaLN_modulation is None:
            x = x + self._attend(self.attention_norm(x), rope, cache)
            return x + self._feed(self.ffn_norm(x))
        if modulation is None:
            assert condition is not None
            modulation = self.modulated_by(condition)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)  # each b 1 width
        x = x + gate_a * self._attend(torch.addcmul(shift_a, self.attention_norm(x), 1 + scale_a), rope, cache)
        return x + gate_m * self._feed(torch.addcmul(shift_m, self.ffn_norm(x), 1 + scale_m))

    def _attend(self, x: Tensor, rope: Rotary | RotaryAlong, cache: KVCache | None) -> Tensor:
        return self.drop_path(self.attention_dropout(self.attention(x, rope, causal=self.causal, cache=cache)))

    def _feed(self, x: Tensor) -> Tensor:
        return self.drop_path(self.ffn_dropout(self.feed_forward(x)))
