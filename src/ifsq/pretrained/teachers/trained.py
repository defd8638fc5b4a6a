"""A teacher that was trained here, without labels and without a download, on the images that a generator learns.

The network is small and convolutional; how it is trained is in `ifsq.pretraining`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.config import InputError, build
from ifsq.pretrained.teachers.config import TeacherConfig
from ifsq.pretrained.teachers.face import ImageTeacher, teacher_digest
from ifsq.store.run import Run
from ifsq.store.weights import build_with

KIND = "teacher"
PREFIX = "network."
"""Of the network's tensors in a checkpoint, beside those that only its training needs."""


@dataclass(frozen=True)
class PatchNetConfig:
    """The network.

    width  channels f of its features
    depth  residual blocks
    patch  pixels a side of a position, a power of two
    """

    width: int = 64
    depth: int = 3
    patch: int = 4

    def __post_init__(self) -> None:
        if self.width < 4 or self.depth < 1:
            raise ValueError(f"width={self.width}, depth={self.depth}: expected at least width 4 and one block")
        if self.patch < 2 or self.patch & (self.patch - 1):
            raise ValueError(f"patch={self.patch}: expected a power of two of pixels, as 4 or 16")


class PatchNet(nn.Module):
    """Halved to the grid of patches, then residual 3x3 convolutions there; any size from one patch on."""

    def __init__(self, config: PatchNetConfig) -> None:
        super().__init__()
        self.config = config
        halvings = config.patch.bit_length() - 1
        widths = [3, *(max(4, config.width >> (halvings - 1 - i)) for i in range(halvings))]
        self.down = nn.ModuleList(nn.Conv2d(inner, outer, 3, stride=2, padding=1) for inner, outer in pairwise(widths))
        self.blocks = nn.ModuleList(_Block(config.width) for _ in range(config.depth))
        self.norm = nn.GroupNorm(1, config.width)

    def forward(self, images: Float[Tensor, "b 3 H W"], depth: int = 0) -> Float[Tensor, "b f _ _"]:
        """Features of images in [-1, 1], after ``depth`` blocks; 0: after all and the norm."""
        x = images
        for number, down in enumerate(self.down):
            x = down(x if number == 0 else F.silu(x))
        for block in self.blocks[: depth or None]:
            x = block(x)
        return x if depth else self.norm(x)


class TrainedTeacher(ImageTeacher):
    """A `PatchNet` as a teacher, of images resized to one of its patches a token.

    Raises InputError for a layer that it has not.
    """

    def __init__(self, network: PatchNet, config: TeacherConfig, name: str) -> None:
        super().__init__()
        if config.layer > network.config.depth:
            raise InputError(f"{config.source}: layer={config.layer}; expected 1 to {network.config.depth}, or 0")
        self.network = network.requires_grad_(False).eval()
        self.layer, self.side, self.width = config.layer, config.side, network.config.width
        self.name = name if not config.layer else f"{name}/{config.layer}"
        self.digest = teacher_digest(network.state_dict(), {"layer": config.layer, "side": config.side})

    def maps(self, images: Float[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b f _ _"]:
        """See `ImageTeacher.maps`."""
        patch = self.network.config.patch
        counts = [max(1, round(n * self.side / min(grid) / patch)) for n in grid] if self.side else grid
        size = tuple(count * patch for count in counts)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.network(images, self.layer)


def open_trained(run: Run, config: TeacherConfig) -> TrainedTeacher:
    """The teacher of a run, its averaged weights. Raises InputError where it is another run, or has no weights."""
    if run.kind != KIND:
        raise InputError(f"{run.name}: holds a run of kind {run.kind}; expected a teacher, see ifsq teacher train")
    found = run.weights()
    described: Any = found.described.get("network")
    sizes = build(PatchNetConfig, described, run.name) if isinstance(described, dict) else None
    if sizes is None:
        raise InputError(f"{run.name}: its weights are of no network that is described")
    table = {key.removeprefix(PREFIX): value for key, value in found.load().items() if key.startswith(PREFIX)}
    network = build_with(lambda: PatchNet(sizes), table, run.name)
    return TrainedTeacher(network, config, run.folder.name)


class _Block(nn.Module):
    """Norm, SiLU, convolution, twice; added to the input. Group norm, so that an image's features are its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))
