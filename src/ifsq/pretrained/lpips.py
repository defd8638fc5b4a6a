"""LPIPS, version 0.1 on VGG16 (Zhang et al. 2018, arXiv:1801.03924): a perceptual distance of two images.

A loss of the tokenizer and a metric of its reconstructions. Checked against golden vectors in ``tests/pretrained``.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.pretrained.weights import WeightsFile, fill, find_weights, read_weights, sha256

VGG16 = WeightsFile(
    "vgg16-397923af.pth",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
)
"""torchvision's VGG16 trained on ImageNet, 553 MB, of which LPIPS uses the convolutions."""
HEADS = WeightsFile(
    "lpips_v0.1_vgg.pth",
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth",
    "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    package=("torchmetrics", "functional/image/lpips_models/vgg.pth"),
)
"""The authors' learned channel weights, 7 kB; torchmetrics carries the same file."""
OFFICIAL_NAME = "lpips-0.1-vgg16"

SMALLEST = 16  # four poolings

_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_TAKEN = (3, 8, 15, 22, 29)  # the ReLU before each pooling, and the last
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation on [-1, 1]


def load_lpips(backbone: str | Path | None = None, heads: str | Path | None = None) -> "LPIPS":
    """With the weights of two files, by default the official ones (`weights.find_weights`). Raises InputError.

    Its ``name`` is ``lpips-0.1-vgg16`` for the official bytes and ``lpips-<SHA-256 of both, 8 digits>`` for any other.
    """
    files = find_weights(VGG16, backbone), find_weights(HEADS, heads)
    digests = [sha256(file) for file in files]
    other = hashlib.sha256("".join(digests).encode()).hexdigest()
    name = OFFICIAL_NAME if digests == [VGG16.sha256, HEADS.sha256] else f"lpips-{other[:8]}"
    return LPIPS(read_weights(files[0]), read_weights(files[1]), name, where=" and ".join(map(str, files)))


class LPIPS(nn.Module):
    """Distance of images in [-1, 1]: 0 for equal ones. Frozen, always in eval mode and in float32 under any autocast.

    backbone  state dict of torchvision's VGG16 (``features.N.*``; its classifier is passed over)
    heads     ``lin0`` to ``lin4`` of the official file, (1, c, 1, 1) each
    name      of these weights; a card bears it
    where     the weights' origin, for messages

    Images of one channel, luminance, are taken as grey RGB. The gradient reaches the images. Keep it out of the trained
    module: its weights are no state of a run.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor], name: str = "other", where: str = "LPIPS"
    ) -> None:
        super().__init__()
        self.name = name
        with torch.device("meta"):  # no random weights first
            self.features = _vgg16_features()
            for number, channels in enumerate(_CHANNELS):
                self.add_module(f"lin{number}", _Head(channels[-1]))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        kept = {key: value for key, value in backbone.items() if not key.startswith("classifier.")}
        fill(self, {**kept, **heads}, where)

    @property
    def official(self) -> bool:
        """Whether the published weights are in it: only then a distance is what others call LPIPS."""
        return self.name == OFFICIAL_NAME

    def train(self, mode: bool = True) -> "LPIPS":
        """Stays in eval mode, whatever a surrounding module asks."""
        return super().train(False)

    def forward(self, a: Float[Tensor, "b c H W"], b: Float[Tensor, "b c H W"]) -> Float[Tensor, "b"]:
        """One distance a pair. Raises ValueError for images below 16 pixels, and of other channels than 3 or 1."""
        return torch.stack(self.layer_distances(a, b)).sum(dim=0)

    def layer_distances(self, a: Float[Tensor, "b c H W"], b: Float[Tensor, "b c H W"]) -> list[Float[Tensor, "b"]]:
        """The five terms of the distance, at relu1_2, 2_2, 3_3, 4_3 and 5_3."""
        if min(a.shape[-2:]) < SMALLEST:
            raise ValueError(f"images of {a.shape[-2]}x{a.shape[-1]} pixels: LPIPS expects at least {SMALLEST}")
        if a.shape[1] not in (1, 3):
            raise ValueError(f"images of {a.shape[1]} channels: LPIPS expects 3, or 1 for luminance")
        with torch.autocast(a.device.type, enabled=False):
            pairs = zip(self._activations(a), self._activations(b), strict=True)
            return [self.get_submodule(f"lin{number}")(one, two) for number, (one, two) in enumerate(pairs)]

    def _activations(self, images: Tensor) -> list[Tensor]:
        """Each stage's last activations, of unit length along the channels."""
        hidden = (images.float() - self.shift) / self.scale  # b 3 H W, of one channel too
        taken = []
        for number, layer in enumerate(self.features):
            hidden = layer(hidden)
            if number in _TAKEN:
                taken.append(unit(hidden))
        return taken


def unit(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Activations of unit length along the channels; zero stays zero."""
    # vector_norm has gradient zero at zero, where a square root of a sum of squares has nan
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


class _Head(nn.Module):
    """Weighted squared difference, summed over channels and averaged over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))  # official names: model.1

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return self.model((one - two).square()).mean(dim=(1, 2, 3))


def _vgg16_features() -> nn.Sequential:
    """torchvision's ``vgg16().features`` without the last pooling."""
    layers: list[nn.Module] = []
    inner = 3
    for stage in _CHANNELS:
        for outer in stage:
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(inplace=True)]
            inner = outer
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-1])
