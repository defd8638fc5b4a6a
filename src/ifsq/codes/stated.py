"""Mean and standard deviation that somebody states of latents, held against some of the latents themselves.

Training normalises latents by what their cache states, and decoding turns samples back by it. Statistics of other
latents would train at the wrong scale without a word, so a sample is measured first.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.config import InputError

SAMPLE = 1024
"""Images that are measured, always the same of so many."""
AT_ONCE = 64
ERRORS = 6.0
"""Standard errors of the sample by which the statistics may be off; of all of the images there is none."""
SLACK = 0.02
"""For rounding, of statistics that were taken of all of them."""


def check_stated(
    latents: Callable[[Int[Tensor, "b"]], Float[Tensor, "b m d h w"]],
    images: int,
    mean: Sequence[float],
    std: Sequence[float],
    where: str,
    slack: float = SLACK,
) -> None:
    """Raise InputError, naming ``where`` and the first channel, unless latents have this mean and standard deviation.

    latents    of images by their numbers; m views of each, as of crops and mirrored
    images     how many there are
    mean, std  of every channel
    slack      standard deviations by which they may be off beside what a sample's own may
    """
    chosen = torch.randperm(images, generator=torch.Generator().manual_seed(0))[:SAMPLE].sort().values
    moments = [_moments(latents(rows)) for rows in chosen.split(AT_ONCE)]
    first, second = (torch.cat(parts) for parts in zip(*moments, strict=True))
    center = first.mean(dim=0)
    variance = second.mean(dim=0) - center.square()
    deviation = variance.clamp(min=0).sqrt()
    share = 0.0 if len(chosen) == images else ERRORS / len(chosen) ** 0.5
    # What the sample's own mean and variance may be off, by the spread of what each image adds to them.
    off_mean = share * first.std(dim=0, correction=0)
    off_variance = share * (second - 2 * center * first).std(dim=0, correction=0)
    numbers = images * latents(chosen[:1])[0, :, 0].numel()  # of a channel, by which or by one less was divided
    for channel in range(len(center)):
        stated, told = float(std[channel]), f"{where}: states mean {mean[channel]:.4g} and std {std[channel]:.4g}"
        scale = max(stated, float(deviation[channel]))
        wrong_mean = abs(float(center[channel]) - mean[channel]) > float(off_mean[channel]) + slack * scale
        allowed = float(off_variance[channel]) + (2 * slack + 1 / numbers) * scale**2
        if wrong_mean or abs(float(variance[channel]) - stated**2) > allowed:
            raise InputError(
                f"{told} of channel {channel}; {len(chosen)} of its {images} images have mean"
                f" {float(center[channel]):.4g} and std {float(deviation[channel]):.4g}: expected its own statistics"
            )


def _moments(views: Float[Tensor, "b m d h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Mean of each image and channel, and of its squares, float64."""
    double = views.double()
    return double.mean(dim=(1, 3, 4)), double.square().mean(dim=(1, 3, 4))
