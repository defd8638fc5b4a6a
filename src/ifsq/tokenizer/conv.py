"""Convolutional encoder and decoder of the official tokenizer (LDM family), and a stem for small machines.

``patch`` > 1 folds patch x patch pixels into channels before the first convolution and unfolds them after the last: the
widest and slowest resolutions disappear. Parameter names are those of the official checkpoints. Called by ``model``.
"""

from dataclasses import dataclass
from math import log2

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ConvConfig:
    """Shape of encoder and decoder.

    width        channels at the first resolution
    multipliers  channels of each resolution in widths; each but the last halves the grid
    blocks       residual blocks a resolution (the decoder has one more) and in the middle
    patch        pixels folded into channels on each side before the first convolution; a power of two
    groups       groups of the group norm
    latent       channels between encoder and quantizer convolution (the official ``z_channels``)
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 4, 4)
    blocks: int = 2
    patch: int = 1
    groups: int = 32
    latent: int = 4

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers={self.multipliers}: expected at least one positive integer")
        for name in ("width", "blocks", "patch", "groups", "latent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not log2(self.patch).is_integer():
            raise ValueError(f"patch={self.patch}: expected a power of two")
        if self.width % self.groups:
            raise ValueError(f"width={self.width}: expected a multiple of groups={self.groups}")

    @property
    def factor(self) -> int:
        """Pixels a side of one code."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each resolution, finest first."""
        return tuple(self.width * m for m in self.multipliers)


class Encoder(nn.Module):
    """Images (b, 3, H, W) -> features (b, 2*latent, H/factor, W/factor)."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        widths, n = config.widths, config.groups
        self.patch = config.patch
        self.conv_in = nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            _Down(widths[max(0, i - 1)], width, config.blocks, n, last=i == len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.mid_block = nn.ModuleList(ResnetBlock(widths[-1], widths[-1], n) for _ in range(config.blocks))
        self.norm_out = nn.GroupNorm(n, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent, 3, padding=1)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b z h w"]:
        x = self.conv_in(F.pixel_unshuffle(images, self.patch))  # b width H/p W/p
        for level in self.down:
            x = level(x)
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))  # b 2*latent h w


class Decoder(nn.Module):
    """Features (b, latent, h, w) -> images (b, 3, h*factor, w*factor); no output activation."""

    def __init__(self, config: ConvConfig) -> None:
        super().__init__()
        widths, n = config.widths, config.groups
        self.patch = config.patch
        self.conv_in = nn.Conv2d(config.latent, widths[-1], 3, padding=1)
        self.mid_block = nn.ModuleList(ResnetBlock(widths[-1], widths[-1], n) for _ in range(config.blocks))
        self.up = nn.ModuleList(  # up.0 is the finest resolution and the last to run, as in the official files
            _Up(widths[min(len(widths) - 1, i + 1)], width, config.blocks + 1, n, first=i == 0)
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(n, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)

    def forward(self, features: Float[Tensor, "b z h w"]) -> Float[Tensor, "b 3 H W"]:
        x = self.conv_in(features)  # b widths[-1] h w
        for block in self.mid_block:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch)  # b 3 H W


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a residual; 1x1 shortcut where the width changes."""

    def __init__(self, width_in: int, width_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width_out, eps=1e-6)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.nin_shortcut(x) + y


class _Down(nn.Module):
    def __init__(self, width_in: int, width: int, blocks: int, groups: int, *, last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(width_in if i == 0 else width, width, groups) for i in range(blocks))
        self.downsample = nn.Identity() if last else _Downsample(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class _Up(nn.Module):
    def __init__(self, width_in: int, width: int, blocks: int, groups: int, *, first: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(width_in if i == 0 else width, width, groups) for i in range(blocks))
        self.upsample = nn.Identity() if first else _Upsample(width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample(x)


class _Downsample(nn.Module):
    """Stride-2 convolution over a zero row below and column to the right, as in the official model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
