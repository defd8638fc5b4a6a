"""Convolutional encoder and decoder of the official tokenizer (LDM family), and a stem for small machines.

``patch`` > 1 folds patch x patch pixels into channels before the first convolution and unfolds them after the last: the
widest and slowest resolutions disappear. Parameter names are those of the official checkpoints. Maps run in memory with
channels last, which their convolutions take without reordering.
"""

from dataclasses import dataclass
from math import log2
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ifsq.tokenizer.blocks import AttnBlock, Downsample, ResnetBlock, Upsample, unrounded
from ifsq.tokenizer.norms import NORMS, Norm, make_norm, norm_silu


@dataclass(frozen=True)
class ConvConfig:
    """Encoder and decoder.

    width             channels at the first resolution
    multipliers       channels of each resolution in widths; each but the last halves the grid
    blocks            residual blocks a resolution (the decoder has one more), and in the middle
    patch             pixels folded into channels on each side before the first convolution; a power of two
    groups            groups of the group norm
    latent            channels that the decoder takes (the official ``z_channels``)
    double_latent     whether the encoder gives twice as many, as for means and log variances; False: LlamaGen's VQ
    norm              ``group``; ``layer`` or ``rms``, over the channels of each position. The official "rmsnorm" is the
                      layer norm. A group norm's statistics are those of the whole image, or of a tile of it
    attention         down-sampling factors (pixels a side of a position) with attention after every residual block
    middle_blocks     residual blocks in the middle, where they are not as many as ``blocks``
    middle_attention  whether attention follows the first of the middle blocks, as in Stable Diffusion's autoencoder
    dropout           share of activations zeroed in every residual block while it trains
    in_channels       of the images: 3 (RGB), 1 (luminance), or as many as the arrays that a program brings
    recompute         whether residual blocks run again in the backward pass instead of keeping their activations: the
                      same gradients from less memory and a third more time
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 4, 4)
    blocks: int = 2
    patch: int = 1
    groups: int = 32
    latent: int = 4
    double_latent: bool = True
    norm: Norm = "group"
    attention: tuple[int, ...] = ()
    middle_blocks: int | None = None
    middle_attention: bool = False
    dropout: float = 0.0
    recompute: bool = False
    in_channels: int = 3

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers={self.multipliers}: expected at least one positive integer")
        for name in ("width", "blocks", "patch", "groups", "latent", "in_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.middle_blocks is not None and self.middle_blocks < 1:
            raise ValueError(f"middle_blocks={self.middle_blocks}: expected at least 1")
        if not log2(self.patch).is_integer():
            raise ValueError(f"patch={self.patch}: expected a power of two")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}: expected one of {', '.join(NORMS)}")
        if self.norm == "group" and self.width % self.groups:
            raise ValueError(f"width={self.width}: expected a multiple of groups={self.groups}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected a number in [0, 1)")
        if not set(self.attention) <= set(self.factors) or len(set(self.attention)) < len(self.attention):
            raise ValueError(f"attention={self.attention}: expected factors among {self.factors}, each once")

    @property
    def factor(self) -> int:
        """Pixels a side of one code."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def factors(self) -> tuple[int, ...]:
        """Pixels a side of one position at each resolution, finest first."""
        return tuple(self.patch * 2**i for i in range(len(self.multipliers)))

    @property
    def features(self) -> int:
        """Channels that the encoder gives."""
        return 2 * self.latent if self.double_latent else self.latent

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, finest first."""
        return tuple(self.width * m for m in self.multipliers)


class Decoded(NamedTuple):
    """Images (b, c, H, W), and the input of the last convolution."""

    images: Tensor
    last: Tensor


class Encoder(nn.Module):
    """Images (b, c, H, W) -> features (b, 2*latent or latent, H/factor, W/factor)."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        widths = config.widths
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Down(config, level) for level in range(len(widths)))
        self.mid_block = _middle_blocks(config)
        self.mid_attention = _attention(config, widths[-1], config.middle_attention)
        self.norm_out = make_norm(config.norm, widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], config.features, 3, padding=1)

    def forward(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b z h w"]:
        x = self.conv_in(_channels_last(F.pixel_unshuffle(images, self.patch)))  # b width H/p W/p
        for level in self.down:
            x = level(x)
        x = _middle(self.mid_block, self.mid_attention, x)
        return unrounded(self.conv_out, norm_silu(self.norm_out, x))  # b features h w


class Decoder(nn.Module):
    """Features (b, latent, h, w) -> images (b, c, h*factor, w*factor); no output activation."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        widths = config.widths
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.latent, widths[-1], 3, padding=1)
        self.mid_block = _middle_blocks(config)
        self.mid_attention = _attention(config, widths[-1], config.middle_attention)
        # up.0 is the finest resolution and the last to run, as in the official files
        self.up = nn.ModuleList(_Up(config, level) for level in range(len(widths)))
        self.norm_out = make_norm(config.norm, widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels * config.patch**2, 3, padding=1)

    def forward(self, features: Float[Tensor, "b z h w"]) -> Decoded:
        x = self.conv_in(_channels_last(features))  # b widths[-1] h w
        x = _middle(self.mid_block, self.mid_attention, x)
        for level in reversed(self.up):
            x = level(x)
        last = norm_silu(self.norm_out, x)  # b width H/p W/p
        return Decoded(F.pixel_shuffle(self.conv_out(last), self.patch), last)  # b c H W

    def last_gradient(self, last: Tensor, slope: Float[Tensor, "b c H W"]) -> Float[Tensor, "out width 3 3"]:
        """Gradient at ``conv_out.weight`` of a loss whose gradient at the images is ``slope``, float32.

        One convolution in place of a walk through the graph: what balances two losses needs it of each.
        """
        at_output = F.pixel_unshuffle(slope.float(), self.patch)
        return conv2d_weight(last.float(), self.conv_out.weight.shape, at_output, padding=1)


class _Level(nn.Module):
    """The residual blocks of one resolution, each with its attention where there is one."""

    def __init__(self, config: ConvConfig, level: int, width_in: int, blocks: int) -> None:
        super().__init__()
        width, attends = config.widths[level], config.factors[level] in config.attention
        self.block = nn.ModuleList(_block(config, width_in if i == 0 else width, width) for i in range(blocks))
        self.attn = nn.ModuleList(_attention(config, width, attends) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.block, self.attn, strict=True):
            x = attention(block(x))
        return x


class _Down(_Level):
    def __init__(self, config: ConvConfig, level: int) -> None:
        widths = config.widths
        super().__init__(config, level, widths[max(0, level - 1)], config.blocks)
        self.downsample = nn.Identity() if level == len(widths) - 1 else Downsample(widths[level])

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class _Up(_Level):
    def __init__(self, config: ConvConfig, level: int) -> None:
        widths = config.widths
        super().__init__(config, level, widths[min(len(widths) - 1, level + 1)], config.blocks + 1)
        self.upsample = nn.Identity() if level == 0 else Upsample(widths[level])

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


def _block(config: ConvConfig, width_in: int, width: int) -> ResnetBlock:
    return ResnetBlock(width_in, width, config.groups, config.norm, config.dropout, config.recompute)


def _middle_blocks(config: ConvConfig) -> nn.ModuleList:
    width, count = config.widths[-1], config.blocks if config.middle_blocks is None else config.middle_blocks
    return nn.ModuleList(_block(config, width, width) for _ in range(count))


def _attention(config: ConvConfig, width: int, wanted: bool) -> nn.Module:
    return AttnBlock(width, config.groups, config.norm) if wanted else nn.Identity()


def _middle(blocks: nn.ModuleList, attention: nn.Module, x: Tensor) -> Tensor:
    x = attention(blocks[0](x))
    for block in blocks[1:]:
        x = block(x)
    return x


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
