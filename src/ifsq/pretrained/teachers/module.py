"""Teachers that need no file in the form of transformers: EfficientNet-Lite0, and anybody's own network."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.config import InputError
from ifsq.pretrained.efficientnet_lite import EfficientNetLite0, load_efficientnet_lite
from ifsq.pretrained.teachers.config import TeacherConfig
from ifsq.pretrained.teachers.face import ImageTeacher, teacher_digest
from ifsq.pretrained.teachers.preprocessing import Preprocessing

STAGES = ((2, 16), (4, 24), (8, 40), (16, 112), (32, 320))
"""Strides and channels of the stages of EfficientNet-Lite0."""
CHOSEN = 1
"""The stage of ``layer = 0``, with 2 pixels a position: of the five the one that saves an autoregressive generator most
bits, as measured in ``benchmarks/alignment_teachers_cpu2_2026-11-28.md``."""


class EfficientNetTeacher(ImageTeacher):
    """Maps of EfficientNet-Lite0 after one of its five stages, of images resized to one position a token.

    network  with its weights
    config   ``layer`` is the stage, 1 to 5

    Raises InputError for another stage.
    """

    def __init__(self, network: EfficientNetLite0, config: TeacherConfig) -> None:
        super().__init__()
        if config.layer > len(STAGES):
            raise InputError(f"{config.source}: layer={config.layer}; expected a stage, 1 to {len(STAGES)}, or 0")
        self.network, self.stage, self.side = network, config.layer or CHOSEN, config.side
        self.stride, self.width = STAGES[self.stage - 1]
        self.name = f"{network.name}/{self.stage}"
        self.digest = teacher_digest(network.state_dict(), {"stage": self.stage, "side": self.side})

    def maps(self, images: Float[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b f _ _"]:
        """See `ImageTeacher.maps`."""
        size = tuple(
            max(round(count * self.side / min(grid)), 1) if self.side else count * self.stride for count in grid
        )
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.network.maps(images, self.stage)[-1]


def open_efficientnet(config: TeacherConfig) -> EfficientNetTeacher:
    """See `EfficientNetTeacher`. Raises InputError where its weights are missing."""
    return EfficientNetTeacher(load_efficientnet_lite(), config)


class ModuleTeacher(ImageTeacher):
    """Anybody's network, which is frozen here.

    module  the network
    look    (module, preprocessed images (b, 3, H, W)) -> features, (b, f, rows, columns)
    width   numbers f in a vector
    name    for tables
    pixels  preprocessing
    stride  pixels a token: images are resized to this many times the token grid; 0: they stay as they are
    about   what else its features depend on, as a version of ``look``: part of the digest, and JSON can hold it
    """

    def __init__(
        self,
        module: nn.Module,
        look: Callable[[Any, Tensor], Tensor],
        width: int,
        name: str,
        pixels: Preprocessing | None = None,
        stride: int = 0,
        about: Any = None,
    ) -> None:
        super().__init__()
        if width < 1 or stride < 0:
            raise ValueError(f"width={width}, stride={stride}: expected a width of at least 1, and no negative stride")
        self.module = module.requires_grad_(False).eval()
        self.look, self.width, self.name, self.stride = look, width, name, stride
        self.pixels = pixels or Preprocessing()
        self.digest = teacher_digest(module.state_dict(), {**self.pixels.settings, "stride": stride, "about": about})

    def maps(self, images: Float[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b f _ _"]:
        """See `ImageTeacher.maps`. Raises ValueError where ``look`` answers with something else."""
        height, width = (count * self.stride for count in grid) if self.stride else images.shape[-2:]
        found = self.look(self.module, self.pixels(images, (height, width)))
        if found.ndim != 4 or found.shape[:2] != (len(images), self.width):
            raise ValueError(
                f"{self.name}: features of shape {tuple(found.shape)}, expected ({len(images)}, {self.width}, rows,"
                " columns)"
            )
        return found
