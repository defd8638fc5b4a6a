"""The velocity network of the diffusion generator: a transformer with adaptive layer norm (DiT, arXiv 2212.09748).

The options turn the original block into the one the paper trains: qk-norm, SwiGLU, rotary positions, RMSNorm.
Every block starts as the identity and the output as zero.
"""

from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ifsq.generators.conditioning import LabelEmbedding, TimeEmbedding
from ifsq.generators.diffusion.config import DiTConfig
from ifsq.generators.diffusion.interval import Interval
from ifsq.generators.taps import Taps
from ifsq.nn.attention import Attention, head_width
from ifsq.nn.embed import Rotary, SinCosPositions
from ifsq.nn.linear import Linear
from ifsq.nn.mlp import GELU, SwiGLU
from ifsq.nn.norm import RMSNorm

NORM_EPS = 1e-6
EMBEDDING_STD = 0.02
ZERO = ("length_embedder.mlp.2.weight", "guidance_embedder.mlp.2.weight")
"""Outputs that begin at 0: the network begins as one of velocities, and without guidance."""


class PatchEmbedding(nn.Module):
    """Cut the grid in squares and project each: (b, d, h, w) -> (b, t, width)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b t width"]:
        return self.proj(x.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class DiTBlock(nn.Module):
    """Attention and MLP whose norm is shifted and scaled, and whose result is gated, by the condition c."""

    not_hidden = ("adaLN_modulation",)  # of Muon, by which it learns worse
    recompute = False  # see `ifsq.training.parallel.recompute`

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = _make_norm(config)
        self.attn = Attention(width, config.heads, bias=True, qk_norm=config.qk_norm)
        self.norm2 = _make_norm(config)
        self.mlp = _make_mlp(config)
        self.parts = 6 if config.adaln_shift else 4
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, self.parts * width))

    def forward(
        self, x: Float[Tensor, "b t width"], c: Float[Tensor, "b width"], rope: Rotary | None
    ) -> Float[Tensor, "b t width"]:
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._run, x, c, rope, use_reentrant=False)
        return self._run(x, c, rope)

    def _run(self, x: Tensor, c: Tensor, rope: Rotary | None) -> Tensor:
        parts = self.adaLN_modulation(c)[:, None].chunk(self.parts, dim=-1)
        if self.parts == 6:
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        else:
            scale_a, gate_a, scale_m, gate_m = parts
            shift_a = shift_m = None
        x = x + gate_a * self.attn(_modulate(self.norm1(x), shift_a, scale_a), rope)
        return x + gate_m * self.mlp(_modulate(self.norm2(x), shift_m, scale_m))


class FinalLayer(nn.Module):
    """Modulated norm and the projection to what comes out of a patch: (b, t, width) -> (b, t, patch*patch*outputs)."""

    def __init__(self, config: DiTConfig, outputs: int) -> None:
        super().__init__()
        self.norm_final = _make_norm(config)
        self.linear = Linear(config.width, config.patch**2 * outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(config.width, 2 * config.width))

    def forward(self, x: Float[Tensor, "b t width"], c: Float[Tensor, "b width"]) -> Float[Tensor, "b t out"]:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """What a path's quantity is at x, by time and label, as its velocity v(x, t, label): float (b, d, h, w) in and out.

    channels  d
    outputs   channels of what comes out; None: d. Twice as many hold a variance too

    Raises ValueError where the patch does not divide the grid or the width does not suit the position tables.
    """

    def __init__(
        self,
        config: DiTConfig,
        channels: int,
        grid: tuple[int, int],
        num_classes: int,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        if grid[0] % config.patch or grid[1] % config.patch:
            raise ValueError(f"patch={config.patch}: expected a divisor of the code grid {grid[0]}x{grid[1]}")
        self.config = config
        self.tokens = (grid[0] // config.patch, grid[1] // config.patch)
        self.x_embedder = PatchEmbedding(channels, config.width, config.patch)
        self.positions = SinCosPositions(self.tokens, config.width)
        self.t_embedder = TimeEmbedding(config.width)
        self.y_embedder = LabelEmbedding(num_classes, config.width)
        # What else a network of average velocities is told; other networks have no such weights.
        self.length_embedder = TimeEmbedding(config.width) if config.averages else None
        self.guidance_embedder = TimeEmbedding(config.width) if config.tells_guidance else None
        self.rope = Rotary(self.tokens, head_width(config.width, config.heads)) if config.rope else None
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config, outputs or channels)
        self.internal_layer = None if config.internal_depth is None else FinalLayer(config, outputs or channels)
        self._initialize()

    def forward(
        self,
        x: Float[Tensor, "b d h w"],
        t: Float[Tensor, "b"],
        labels: Int[Tensor, "b"],
        taps: Taps | None = None,
        interval: Interval | None = None,
    ) -> Float[Tensor, "b outputs h w"]:
        """t in [0, 1], 1 is data; ``labels`` may hold the null class; ``taps`` is told of every block's state.

        interval  of an average velocity; None: the velocity at t. Read where the network has learned averages
        """
        c = self.condition(t, labels, interval)
        return self._unpatch(self.final_layer(self.states(x, c, taps=taps), c))

    def forward_both(
        self, x: Float[Tensor, "b d h w"], t: Float[Tensor, "b"], labels: Int[Tensor, "b"], taps: Taps | None = None
    ) -> tuple[Float[Tensor, "b outputs h w"], Float[Tensor, "b outputs h w"]]:
        """What `forward` gives, and what the internal layer gives behind the first ``internal_depth`` blocks."""
        depth = self.config.internal_depth
        assert depth is not None
        assert self.internal_layer is not None
        taps = Taps(()) if taps is None else taps
        taps.depths += (depth,)
        c = self.condition(t, labels)
        final = self.final_layer(self.states(x, c, taps=taps), c)
        return self._unpatch(final), self._unpatch(self.internal_layer(taps.states[depth], c))

    def condition(
        self, t: Float[Tensor, "b"], labels: Int[Tensor, "b"], interval: Interval | None = None
    ) -> Float[Tensor, "b width"]:
        """What modulates every block: the embeddings of time, label and what else the network is told, added."""
        c = self.t_embedder(t) + self.y_embedder(labels)
        if self.length_embedder is not None:
            c = c + self.length_embedder(torch.zeros_like(t) if interval is None else interval.length)
        if self.guidance_embedder is not None:
            scale = None if interval is None else interval.guidance
            c = c + self.guidance_embedder(torch.zeros_like(t) if scale is None else 1 - 1 / scale)
        return c

    def states(
        self,
        x: Float[Tensor, "b d h w"],
        c: Float[Tensor, "b width"],
        depth: int | None = None,
        taps: Taps | None = None,
    ) -> Float[Tensor, "b t width"]:
        """Tokens after all blocks, or the first ``depth``."""
        tokens = self.positions(self.x_embedder(x))
        if taps is not None:
            taps.keep(0, tokens)
        for number, block in enumerate(islice(self.blocks, depth), 1):
            tokens = block(tokens, c, self.rope)
            if taps is not None:
                taps.keep(number, tokens)
        return tokens

    def _unpatch(self, x: Tensor) -> Tensor:
        patch = self.config.patch
        x = x.unflatten(2, (patch, patch, -1)).unflatten(1, self.tokens)  # b rows columns p q d
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # b d h w

    def _initialize(self) -> None:
        for name, parameter in self.named_parameters():
            zero = name.endswith(("bias", "adaLN_modulation.1.weight", "_layer.linear.weight")) or name in ZERO
            if zero:
                nn.init.zeros_(parameter)
            elif name.partition(".")[0].endswith("_embedder") and not name.startswith("x_"):
                nn.init.normal_(parameter, std=EMBEDDING_STD)
            elif parameter.ndim > 1:  # the scales of the norms stay 1
                nn.init.xavier_uniform_(parameter.flatten(1))


def _modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    if shift is None:
        return x * (1 + scale)
    return torch.addcmul(shift, x, 1 + scale)


def _make_norm(config: DiTConfig) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(config.width, eps=NORM_EPS)
    return nn.LayerNorm(config.width, eps=NORM_EPS, elementwise_affine=False)


def _make_mlp(config: DiTConfig) -> nn.Module:
    hidden = int(config.width * config.mlp_ratio)
    if config.mlp == "gelu":
        return GELU(config.width, hidden)
    return SwiGLU(config.width, int(2 / 3 * hidden), bias=True)
