"""The velocity network of the diffusion generator: a transformer with adaptive layer norm (DiT, arXiv 2212.09748).

The options turn the original block into the one the paper trains: qk-norm, SwiGLU, rotary positions, RMSNorm.
Every block starts as the identity and the output as zero. Called by ``flow``.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.generators.conditioning import LabelEmbedding, TimeEmbedding
from ifsq.nn.attention import Attention, head_width
from ifsq.nn.embed import Rotary, SinCosPositions
from ifsq.nn.mlp import GELU, SwiGLU
from ifsq.nn.norm import RMSNorm

MLPS = ("swiglu", "gelu")
NORMS = ("rms", "layer")
TIME_SAMPLINGS = ("lognorm", "uniform")
NORM_EPS = 1e-6
EMBEDDING_STD = 0.02


@dataclass(frozen=True)
class DiTConfig:
    """Size and options of a `DiffusionGenerator`; the block's defaults are those of the paper's DiT.

    depth, width, heads  of the transformer
    patch                codes on a side of a token; must divide the grid
    mlp_ratio            hidden width over width (SwiGLU takes two thirds of it, for the same parameter count)
    mlp                  ``swiglu`` or ``gelu``
    norm                 ``rms`` (with a scale) or ``layer`` (without)
    rope                 rotary positions in every attention, beside the fixed embedding
    qk_norm              RMS-normalise queries and keys
    label_dropout        share of training labels replaced by the null class
    cosine_weight        weight of ``1 - cos`` between predicted and true velocity in the loss; the official code has 1
    time_sampling        training times: ``lognorm`` is sigmoid of N(0, 1)
    guidance_channels    guide the first so many code channels only; None guides all, the official code has 3
    """

    depth: int
    width: int
    heads: int
    patch: int
    mlp_ratio: float = 4.0
    mlp: str = "swiglu"
    norm: str = "rms"
    rope: bool = True
    qk_norm: bool = True
    label_dropout: float = 0.1
    cosine_weight: float = 0.0
    time_sampling: str = "lognorm"
    guidance_channels: int | None = None

    def __post_init__(self) -> None:
        head_width(self.width, self.heads)
        for name in ("depth", "patch", "guidance_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        for name, choices in (("mlp", MLPS), ("norm", NORMS), ("time_sampling", TIME_SAMPLINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout={self.label_dropout}: expected a share of at least 0 and below 1")
        if not self.mlp_ratio > 0 or not self.cosine_weight >= 0:
            raise ValueError(
                f"mlp_ratio={self.mlp_ratio}, cosine_weight={self.cosine_weight}: expected a positive ratio, "
                "a weight of at least 0"
            )


class PatchEmbedding(nn.Module):
    """Cut the grid in squares and project each: (b, d, h, w) -> (b, t, width)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b t width"]:
        return self.proj(x.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


class DiTBlock(nn.Module):
    """Attention and MLP whose norm is shifted and scaled, and whose result is gated, by the condition c."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = _make_norm(config)
        self.attn = Attention(width, config.heads, bias=True, qk_norm=config.qk_norm)
        self.norm2 = _make_norm(config)
        self.mlp = _make_mlp(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Float[Tensor, "b t width"], c: Float[Tensor, "b width"], rope: Rotary | None
    ) -> Float[Tensor, "b t width"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.attn(_modulate(self.norm1(x), shift_a, scale_a), rope)
        return x + gate_m * self.mlp(_modulate(self.norm2(x), shift_m, scale_m))


class FinalLayer(nn.Module):
    """Modulated norm and the projection back to the codes of a patch: (b, t, width) -> (b, t, patch*patch*d)."""

    def __init__(self, config: DiTConfig, channels: int) -> None:
        super().__init__()
        self.norm_final = _make_norm(config)
        self.linear = nn.Linear(config.width, config.patch**2 * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 2 * config.width))

    def forward(self, x: Float[Tensor, "b t width"], c: Float[Tensor, "b width"]) -> Float[Tensor, "b t out"]:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """Velocity v(x, t, label) of the flow: float (b, d, h, w) in and out.

    Raises ValueError where the patch does not divide the grid or the width does not suit the position tables.
    """

    def __init__(self, config: DiTConfig, channels: int, grid: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        if grid[0] % config.patch or grid[1] % config.patch:
            raise ValueError(f"patch={config.patch}: expected a divisor of the code grid {grid[0]}x{grid[1]}")
        self.config = config
        self.tokens = (grid[0] // config.patch, grid[1] // config.patch)
        self.x_embedder = PatchEmbedding(channels, config.width, config.patch)
        self.positions = SinCosPositions(self.tokens, config.width)
        self.t_embedder = TimeEmbedding(config.width)
        self.y_embedder = LabelEmbedding(num_classes, config.width)
        self.rope = Rotary(self.tokens, head_width(config.width, config.heads)) if config.rope else None
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config, channels)
        self._initialize()

    def forward(
        self, x: Float[Tensor, "b d h w"], t: Float[Tensor, "b"], labels: Int[Tensor, "b"]
    ) -> Float[Tensor, "b d h w"]:
        """t in [0, 1], 1 is data; ``labels`` may hold the null class."""
        c = self.t_embedder(t) + self.y_embedder(labels)  # b width
        tokens = self.positions(self.x_embedder(x))  # b t width
        for block in self.blocks:
            tokens = block(tokens, c, self.rope)
        return self._unpatch(self.final_layer(tokens, c))

    def _unpatch(self, x: Tensor) -> Tensor:
        patch = self.config.patch
        x = x.unflatten(2, (patch, patch, -1)).unflatten(1, self.tokens)  # b rows columns p q d
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # b d h w

    def _initialize(self) -> None:
        for name, parameter in self.named_parameters():
            zero = name.endswith(("bias", "adaLN_modulation.1.weight")) or name == "final_layer.linear.weight"
            if zero:
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder.", "y_embedder.")):
                nn.init.normal_(parameter, std=EMBEDDING_STD)
            elif parameter.ndim > 1:  # the scales of the norms stay 1
                nn.init.xavier_uniform_(parameter.flatten(1))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
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
