"""Patch discriminator of pix2pix (arXiv 1611.07004), as taming-transformers and the official tokenizer build it.

Parameter names are those of the official checkpoints (``main.0.weight`` ...).
"""

from dataclasses import dataclass
from math import gcd
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of a patch discriminator.

    layers  convolutions that halve the grid; one more convolution and the one to the logits keep its stride
    width   channels after the first; doubled by each of the next, up to 8 widths
    norm    ``batch`` (official), or ``group``: 32 groups, or the most that divide 32 and the channels
    channels  of the images
    """

    layers: int = 4
    width: int = 64
    norm: Literal["batch", "group"] = "batch"
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("layers", "width", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.norm not in ("batch", "group"):
            raise ValueError(f"norm={self.norm!r}: expected 'batch' or 'group'")

    @property
    def smallest(self) -> int:
        """Least pixels a side of an image: there it is one logit."""
        return 3 * 2**self.layers


class PatchDiscriminator(nn.Module):
    """Images (b, c, H, W) in [-1, 1] -> logits (b, 1, h, w), high where they look real; h = H // 2^layers - 2."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * min(2**i, 8) for i in range(config.layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, len(widths)):
            stride = 2 if i < config.layers else 1
            # A batch norm takes any bias away again, a group norm only what the channels of a group share.
            bias = config.norm == "group"
            modules += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=bias),
                nn.BatchNorm2d(widths[i]) if config.norm == "batch" else nn.GroupNorm(gcd(32, widths[i]), widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b 1 h w"]:
        """Logits. Raises ValueError for images below ``config.smallest`` pixels a side."""
        height, width = images.shape[-2:]
        if min(height, width) < self.config.smallest:
            raise ValueError(
                f"images of {height} x {width} pixels: a discriminator of layers={self.config.layers} expected at least"
                f" {self.config.smallest} a side"
            )
        return self.main(images)
