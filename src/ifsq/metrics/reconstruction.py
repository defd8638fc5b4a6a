"""PSNR and SSIM of reconstructions, on the 8-bit images that a file would hold.

Both are means over images, so that the batch size changes nothing. Called by ``pipeline`` to evaluate a tokenizer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.data import to_uint8


@dataclass(frozen=True)
class ReconstructionScores:
    """Means over ``n`` images, and standard deviations over them (divided by n): PSNR in dB, SSIM at most 1."""

    psnr: float
    psnr_std: float
    ssim: float
    ssim_std: float
    n: int


def psnr(images: Float[Tensor, "b 3 H W"], reconstructions: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio of every image in dB, float64, after clamping and rounding to bytes.

    Identical images count as if one byte were off by one, so that a mean stays finite: 83 dB at 32 x 32.
    """
    _check_pair(images, reconstructions)
    squared = (_bytes(images) - _bytes(reconstructions)).square().sum(dim=(1, 2, 3)).clamp(min=1)
    return 10 * torch.log10(255**2 * images[0].numel() / squared)


def ssim(images: Float[Tensor, "b 3 H W"], reconstructions: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b"]:
    """Structural similarity of every image, on bytes (data range 255), float64.

    torchmetrics with its defaults: an 11 x 11 Gaussian window of standard deviation 1.5 and the biased variance of
    Wang et al. (2004), borders reflected, mean over channels and all pixels. (scikit-image leaves the border out, and
    its default is a flat 7 x 7 window: its numbers differ in the third decimal.) Images need at least 6 pixels a side.
    """
    # torchmetrics takes a second to import, and most commands measure nothing.
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_pair(images, reconstructions)
    if min(images.shape[2:]) < 6:
        raise ValueError(f"images of {images.shape[2]} x {images.shape[3]}: expected at least 6 x 6 for SSIM")
    scores = structural_similarity_index_measure(
        _bytes(reconstructions), _bytes(images), data_range=255.0, reduction="none"
    )
    return torch.as_tensor(scores).reshape(len(images))


class Reconstruction:
    """Running PSNR and SSIM: `add` batches, then read `scores`."""

    def __init__(self) -> None:
        self._psnr: list[Tensor] = []
        self._ssim: list[Tensor] = []

    def add(self, images: Float[Tensor, "b 3 H W"], reconstructions: Float[Tensor, "b 3 H W"]) -> None:
        """Count a batch in [-1, 1]; reconstructions may reach beyond and are clamped."""
        self._psnr.append(psnr(images, reconstructions))
        self._ssim.append(ssim(images, reconstructions))

    def scores(self) -> ReconstructionScores:
        """Scores of all images so far. Raises ValueError when there are none."""
        if not self._psnr:
            raise ValueError("reconstruction scores of 0 images: expected at least one")
        decibels, similarities = torch.cat(self._psnr), torch.cat(self._ssim)
        return ReconstructionScores(
            psnr=float(decibels.mean()),
            psnr_std=float(decibels.std(correction=0)),
            ssim=float(similarities.mean()),
            ssim_std=float(similarities.std(correction=0)),
            n=len(decibels),
        )


def _bytes(images: Tensor) -> Tensor:
    """0 .. 255 as float64, channels first."""
    return torch.from_numpy(to_uint8(images)).movedim(-1, 1).double()


def _check_pair(images: Tensor, reconstructions: Tensor) -> None:
    if images.shape != reconstructions.shape:
        raise ValueError(f"reconstructions {tuple(reconstructions.shape)}: expected {tuple(images.shape)}")
