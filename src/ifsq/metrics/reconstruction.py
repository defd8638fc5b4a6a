"""PSNR, SSIM and MS-SSIM of reconstructions, on the 8-bit images that a file would hold.

A value an image, whatever the batch; `ImageScores` keeps them and gives their means.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the scales, finest first (Wang, Simoncelli and Bovik 2003)."""
WINDOW, SIGMA = 11, 1.5
"""Pixels of the Gaussian window of SSIM, and its standard deviation (Wang et al. 2004)."""


def psnr(images: Float[Tensor, "b c H W"], reconstructions: Float[Tensor, "b c H W"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio of every image in dB, float64, after clamping and rounding to bytes.

    Identical images count as if one byte were off by one, so that a mean stays finite: 83 dB at 32 x 32.
    """
    _check_pair(images, reconstructions)
    squared = (_bytes(images) - _bytes(reconstructions)).square().sum(dim=(1, 2, 3)).clamp(min=1)
    return 10 * torch.log10(255**2 * images[0].numel() / squared)


def ssim(images: Float[Tensor, "b c H W"], reconstructions: Float[Tensor, "b c H W"]) -> Float[Tensor, "b"]:
    """Structural similarity of every image, on bytes (data range 255), float64.

    As torchmetrics has it by default: an 11 x 11 Gaussian window of standard deviation 1.5 and the biased variance of
    Wang et al. (2004), borders reflected, mean over channels and all pixels. (scikit-image leaves the border out, and
    its default is a flat 7 x 7 window: its numbers differ in the third decimal.) Images need at least 6 pixels a side.
    """
    _check_pair(images, reconstructions)
    if min(images.shape[2:]) < 6:
        raise ValueError(f"images of {images.shape[2]} x {images.shape[3]}: expected at least 6 x 6 for SSIM")
    return _similarity(_bytes(images), _bytes(reconstructions)).whole


def ms_ssim_scales(height: int, width: int) -> int:
    """Scales that images of this size have room for, the window inside the coarsest: 5 from 176 pixels on.

    Below 22 pixels there is no second one, and 0 says that there is no MS-SSIM.
    """
    scales = max(0, (min(height, width) // WINDOW).bit_length())
    return 0 if scales < 2 else min(scales, len(MS_SSIM_WEIGHTS))


def ms_ssim_name(scales: int) -> str:
    """``MS-SSIM`` for the five scales of its authors; fewer are another measure and bear another name."""
    return "MS-SSIM" if scales == len(MS_SSIM_WEIGHTS) else f"MS-SSIM of {scales} scales"


def ms_ssim(images: Float[Tensor, "b c H W"], reconstructions: Float[Tensor, "b c H W"]) -> Float[Tensor, "b"]:
    """Multi-scale structural similarity of every image, on bytes, float64; on as many scales as `ms_ssim_scales`.

    As torchmetrics has it: the window of `ssim`, contrast terms without the border that was reflected, negative terms
    taken as 0, each scale the 2 x 2 means of the one before. The weights of fewer than five scales are the first of
    `MS_SSIM_WEIGHTS`, brought to sum 1. Raises ValueError below 22 pixels a side.
    """
    _check_pair(images, reconstructions)
    scales = ms_ssim_scales(*images.shape[2:])
    if not scales:
        raise ValueError(f"images of {images.shape[2]} x {images.shape[3]}: expected at least 22 x 22 for MS-SSIM")
    weights = MS_SSIM_WEIGHTS[:scales]
    if scales < len(MS_SSIM_WEIGHTS):
        weights = tuple(weight / sum(weights) for weight in weights)
    a, b = _bytes(images), _bytes(reconstructions)
    product = a.new_ones(len(a))
    for scale, weight in enumerate(weights, start=1):
        found = _similarity(a, b)
        product = product * (found.whole if scale == scales else found.contrast).clamp(min=0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product


@dataclass(frozen=True)
class _Similarity:
    """For every image: mean of luminance times contrast, and mean of the contrast inside the reflected border."""

    whole: Float[Tensor, "b"]
    contrast: Float[Tensor, "b"]


def _similarity(a: Float[Tensor, "b c H W"], b: Float[Tensor, "b c H W"]) -> _Similarity:
    """Equation 13 of Wang et al. (2004): its two factors apart."""
    rows, columns = (_window_matrix(length, a) for length in a.shape[2:])

    def local_mean(x: Tensor) -> Tensor:
        return rows @ x @ columns.T

    c1, c2, edge = (0.01 * 255) ** 2, (0.03 * 255) ** 2, WINDOW // 2
    mean_a, mean_b = local_mean(a), local_mean(b)
    variances = local_mean(a * a + b * b) - mean_a**2 - mean_b**2
    contrast = (2 * (local_mean(a * b) - mean_a * mean_b) + c2) / (variances + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    inside = contrast[..., edge:-edge, edge:-edge]
    return _Similarity((luminance * contrast).mean(dim=(1, 2, 3)), inside.mean(dim=(1, 2, 3)))


def _window_matrix(length: int, like: Tensor) -> Float[Tensor, "n n"]:
    """The Gaussian window at every place of a line, as a matrix; what lies outside is reflected about the last pixel.

    Two products of such matrices are far quicker on a CPU than a convolution in float64.
    """
    offsets = torch.arange(WINDOW) - WINDOW // 2
    window = torch.exp(-offsets.double().square() / (2 * SIGMA**2))
    at = (torch.arange(length)[:, None] + offsets).abs()
    at = torch.where(at >= length, 2 * (length - 1) - at, at)
    weights = (window / window.sum()).expand(length, WINDOW)
    return torch.zeros(length, length, dtype=torch.float64).scatter_add_(1, at, weights).to(like.device)


@dataclass(frozen=True)
class Summary:
    """Mean over ``n`` images and standard deviation over them (divided by n)."""

    mean: float
    std: float
    n: int


class ImageScores:
    """Values of single images by the name of their metric: 8 bytes an image and metric. `add`, `merge`, `summary`."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Float[Tensor, "b"]]) -> None:
        """Count the images of a batch."""
        for name, scores in values.items():
            self._values.setdefault(name, []).append(scores.detach().to("cpu", torch.float64))

    def merge(self, other: "ImageScores") -> None:
        """Count what ``other`` has counted."""
        for name, parts in other._values.items():
            self._values.setdefault(name, []).extend(parts)

    def summary(self) -> dict[str, Summary]:
        """Mean and deviation of every score over all images so far. Raises ValueError when there are none."""
        if not self._values:
            raise ValueError("scores of 0 images: expected at least one")
        found = {name: torch.cat(parts) for name, parts in self._values.items()}
        return {
            name: Summary(float(values.mean()), float(values.std(correction=0)), len(values))
            for name, values in found.items()
        }


def _bytes(images: Tensor) -> Tensor:
    """0 .. 255 as float64 on the images' device; rounds as `ifsq.data.to_uint8` does."""
    return (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255).double()


def _check_pair(images: Tensor, reconstructions: Tensor) -> None:
    if images.shape != reconstructions.shape:
        raise ValueError(f"reconstructions {tuple(reconstructions.shape)}: expected {tuple(images.shape)}")
