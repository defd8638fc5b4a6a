"""What is done to an image before a teacher sees it: resized by a kernel, then shifted and scaled a channel."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ifsq.config import InputError, read_json

Triple = tuple[float, float, float]
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
HALF: Triple = (0.5, 0.5, 0.5)
KERNELS = ("bilinear", "bicubic")
PIL_KERNELS = {2: "bilinear", 3: "bicubic"}  # its numbers of them, which image processors store


@dataclass(frozen=True)
class Preprocessing:
    """Of images in [0, 1]: ``(resized - mean) / std``, a channel each.

    kernel  ``bilinear`` or ``bicubic``, antialiased, corners not aligned, as PIL resizes
    """

    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    kernel: str = "bicubic"

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel={self.kernel!r}: expected one of {', '.join(KERNELS)}")
        if min(self.std) <= 0:
            raise ValueError(f"std={list(self.std)}: expected positive numbers")

    def __call__(self, images: Float[Tensor, "b 3 H W"], size: tuple[int, int]) -> Float[Tensor, "b 3 _ _"]:
        """What the network sees of images in [-1, 1], at a height and a width.

        A bicubic kernel goes beyond black and white beside edges; that is cut off, as in images of 8 bits.
        """
        x = (images + 1) / 2  # [0, 1]
        if tuple(x.shape[-2:]) != size:
            x = F.interpolate(x, size, mode=self.kernel, antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(of, device=x.device).view(3, 1, 1) for of in (self.mean, self.std))
        return (x - mean) / std

    @property
    def settings(self) -> dict[str, Any]:
        """For `teacher_digest`."""
        return asdict(self)


def read_preprocessing(file: Path, default: Preprocessing) -> Preprocessing:
    """What a ``preprocessor_config.json`` of transformers says; ``default`` where there is none.

    Crops are passed over: a teacher sees the whole of an image that was cropped already. Raises InputError.
    """
    if not file.exists():
        return default
    table = read_json(file)
    if not isinstance(table, dict):
        raise InputError(f"{file}: expected a table of an image processor")
    mean, std, kernel = default.mean, default.std, default.kernel
    if not table.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    else:
        mean, std = _triple(table, "image_mean", mean, file), _triple(table, "image_std", std, file)
    factor = table.get("rescale_factor", 1 / 255) if table.get("do_rescale", True) else 1.0
    if type(factor) is not float or abs(factor * 255 - 1) > 1e-3:
        raise InputError(f"{file}: rescale_factor={factor!r}; expected an image processor that divides by 255")
    if (number := table.get("resample")) is not None:
        if number not in PIL_KERNELS:
            raise InputError(f"{file}: resample={number!r}; expected 2 for bilinear or 3 for bicubic")
        kernel = PIL_KERNELS[number]
    if min(std) <= 0:
        raise InputError(f"{file}: image_std={list(std)}; expected positive numbers")
    return Preprocessing(mean, std, kernel)


def _triple(table: Mapping[str, Any], key: str, default: Triple, file: Path) -> Triple:
    value = table.get(key)
    if value is None:
        return default
    if not isinstance(value, Sequence) or len(value) != 3 or not all(type(v) in (int, float) for v in value):
        raise InputError(f"{file}: {key}={value!r}; expected a number for each of three channels")
    return float(value[0]), float(value[1]), float(value[2])
