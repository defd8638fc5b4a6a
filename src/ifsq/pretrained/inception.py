"""The Inception network of FID: TensorFlow's of 2015-12-05, 1008 classes (Szegedy et al. 2015; Heusel et al. 2017).

It differs from the Inception-v3 known since: average pooling leaves the padding out, the last block pools by maximum,
and images are resized as TensorFlow 1 did. Only its features give a number called FID. Weights in the layout of
pytorch-fid. Checked against golden vectors in ``tests/pretrained``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ifsq.pretrained.network import FeatureNetwork
from ifsq.pretrained.weights import WeightsFile, fill, find_weights, read_weights, sha256

INCEPTION = WeightsFile(
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    instead="ifsq evaluate --features efficientnet-lite0 works without it",
)
"""The network of 2015-12-05, 96 MB."""
OFFICIAL_NAME = "inception-2015-12-05"

FEATURES = {"64": 64, "192": 192, "spatial": 2023, "768": 768, "2048": 2048, "logits_unbiased": 1008, "logits": 1008}
"""Outputs and their widths: means over the grid, a part of the 17 x 17 grid, class scores without and with the bias."""
SPATIAL = 7
"""Channels of ``spatial``."""


def load_inception(path: str | Path | None = None) -> "FIDInception":
    """With the weights of a file, by default the official one (`weights.find_weights`). Raises InputError.

    Its ``name`` is ``inception-2015-12-05`` for the official bytes and ``inception-<SHA-256, 8 digits>`` for any other.
    """
    file = find_weights(INCEPTION, path)
    digest = sha256(file)
    name = OFFICIAL_NAME if digest == INCEPTION.sha256 else f"inception-{digest[:8]}"
    return FIDInception(read_weights(file), name, where=str(file))


class FIDInception(FeatureNetwork):
    """Features of 8-bit images. Frozen, always in eval mode and in float32 under any autocast; no gradient.

    table  state dict in the layout of pytorch-fid's file
    name   of these weights; a distance of their features bears it
    where  the weights' origin, for messages

    ``spatial`` is what sFID measures (Nash et al. 2021, arXiv:2103.03841) as the field's evaluator (ADM) takes it:
    TensorFlow's node ``mixed_6/conv``, here the 1x1 branch of ``Mixed_6d``, its first 7 channels of 192, as 17 x 17 x 7
    with the channels last, so that statistics of either make one distance.
    """

    widths = FEATURES
    pooled, spatial, logits = "2048", "spatial", "logits_unbiased"

    def __init__(self, table: Mapping[str, Tensor], name: str, where: str = "Inception") -> None:
        super().__init__()
        self.name = name
        with torch.device("meta"):  # no random weights first
            self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, valid=True)
            self.Conv2d_2a_3x3 = _Conv(32, 32, 3, valid=True)
            self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
            self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
            self.Conv2d_4a_3x3 = _Conv(80, 192, 3, valid=True)
            self.Mixed_5b = _MixedA(192, 32)
            self.Mixed_5c = _MixedA(256, 64)
            self.Mixed_5d = _MixedA(288, 64)
            self.Mixed_6a = _ReduceB(288)
            self.Mixed_6b = _MixedC(128)
            self.Mixed_6c = _MixedC(160)
            self.Mixed_6d = _MixedC(160)
            self.Mixed_6e = _MixedC(192)
            self.Mixed_7a = _ReduceD(768)
            self.Mixed_7b = _MixedE(1280, _mean3)
            self.Mixed_7c = _MixedE(2048, _max3)
            self.fc = nn.Linear(2048, 1008)
        fill(self, table, where)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 times as fast on a CPU

    @torch.no_grad()
    def forward(
        self, images: UInt8[Tensor, "b c H W"], wanted: Sequence[str] = ("2048",)
    ) -> dict[str, Float[Tensor, "b _"]]:
        """The wanted ones of `FEATURES` by name; what lies behind the last of them is not computed.

        Images of one channel, luminance, are taken as grey RGB. Raises ValueError, as `FeatureNetwork.check`.
        """
        self.check(images, wanted)
        found: dict[str, Tensor] = {}
        with torch.autocast(images.device.type, enabled=False):
            for name, value in self._outputs(images.expand(-1, 3, -1, -1)):
                found[name] = value
                if set(wanted) <= set(found):
                    break
        return {name: found[name] for name in wanted}

    def _outputs(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """`FEATURES` in their order, each computed when it is asked for."""
        x = (_resize_tf1(images.float()) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (b, 64, 147, 147)
        x = F.max_pool2d(x, 3, stride=2)
        yield "64", x.mean(dim=(2, 3))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # (b, 192, 71, 71)
        x = F.max_pool2d(x, 3, stride=2)
        yield "192", x.mean(dim=(2, 3))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (b, 288, 35, 35)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # (b, 768, 17, 17), its 1x1 branch first
        yield "spatial", x[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_6e(x)
        yield "768", x.mean(dim=(2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (b, 2048, 8, 8)
        pooled = x.mean(dim=(2, 3))
        yield "2048", pooled
        logits = pooled @ self.fc.weight.T
        yield "logits_unbiased", logits
        yield "logits", logits + self.fc.bias


class _Conv(nn.Module):
    """Convolution without bias, batch norm with its stored statistics, ReLU. Pads to keep the grid unless ``valid``."""

    def __init__(
        self, inner: int, outer: int, kernel: int | tuple[int, int], stride: int = 1, valid: bool = False
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid else (height // 2, width // 2)
        self.conv = nn.Conv2d(inner, outer, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _MixedA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3 and pooling side by side."""

    def __init__(self, inner: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inner, 64, 1)
        self.branch5x5_1 = _Conv(inner, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5)
        self.branch3x3dbl_1 = _Conv(inner, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3)
        self.branch_pool = _Conv(inner, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch1x1(x), five, three, self.branch_pool(_mean3(x))), dim=1)


class _ReduceB(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inner, 384, 3, stride=2, valid=True)
        self.branch3x3dbl_1 = _Conv(inner, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2, valid=True)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)), dim=1)


class _MixedC(nn.Module):
    """17 x 17: 1x1, one 7x7, two 7x7 (each as a row and a column) and pooling side by side; ``width`` inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, width, 1)
        self.branch7x7_2 = _Conv(width, width, (1, 7))
        self.branch7x7_3 = _Conv(width, 192, (7, 1))
        self.branch7x7dbl_1 = _Conv(768, width, 1)
        self.branch7x7dbl_2 = _Conv(width, width, (7, 1))
        self.branch7x7dbl_3 = _Conv(width, width, (1, 7))
        self.branch7x7dbl_4 = _Conv(width, width, (7, 1))
        self.branch7x7dbl_5 = _Conv(width, 192, (1, 7))
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat((self.branch1x1(x), single, double, self.branch_pool(_mean3(x))), dim=1)


class _ReduceD(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(inner, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2, valid=True)
        self.branch7x7x3_1 = _Conv(inner, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2, valid=True)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat((three, seven, F.max_pool2d(x, 3, stride=2)), dim=1)


class _MixedE(nn.Module):
    """8 x 8: 1x1, 3x3 split into a row and a column, the same after another 3x3, and ``pool``, side by side."""

    def __init__(self, inner: int, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = _Conv(inner, 320, 1)
        self.branch3x3_1 = _Conv(inner, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3))
        self.branch3x3_2b = _Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = _Conv(inner, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1))
        self.branch_pool = _Conv(inner, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = (
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        )
        return torch.cat(parts, dim=1)


def _mean3(x: Tensor) -> Tensor:
    """Mean of 3 x 3 neighbours, of those inside the grid."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max3(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _resize_tf1(x: Tensor, size: int = 299) -> Tensor:
    """Bilinear to a square as TensorFlow 1 did: output pixel i reads at i * in / size (no half-pixel centres)."""
    for dim in (3, 2):  # width first, as TensorFlow sums
        length = x.shape[dim]
        at = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
        below = at.long().clamp(max=length - 1)
        above = (below + 1).clamp(max=length - 1)
        share = (at - below).view(-1, *(1,) * (3 - dim))
        low, high = x.index_select(dim, below), x.index_select(dim, above)
        x = low + (high - low) * share
    return x
