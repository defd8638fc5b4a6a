"""The training images nearest to a few samples: what shows whether a generator draws what it has seen."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ifsq.data import DataError, ImageSource, iterate_once, to_uint8
from ifsq.data.sampler import max_batch
from ifsq.evaluation.protocol import sample_indices
from ifsq.metrics.tiles import squared_distances

MOST_SEARCHED = 20_000
"""Images that are looked through; of more, as many drawn over them."""
SIDE = 32
"""Pixels to which the longer side of larger images is averaged before they are compared."""


@dataclass(frozen=True)
class Nearest:
    """The nearest training images.

    images    one a sample, 8-bit
    searched  in words: by what, and among how many
    """

    images: UInt8[np.ndarray, "n H W c"]
    searched: str


@torch.no_grad()
def nearest_images(samples: UInt8[np.ndarray, "n H W c"], real: ImageSource) -> Nearest:
    """For every sample the image of ``real`` at the least distance between pixels, the first of equal ones.

    An image that cannot be read is no neighbour. Raises DataError where none can be.
    """
    # A stream passes over all that lies before an image: the first ones of it, not some drawn over it.
    drawn = list(range(min(len(real), MOST_SEARCHED))) if real.block else sorted(sample_indices(real, MOST_SEARCHED))
    asked = _small(samples)
    best = torch.full((len(samples),), torch.inf, dtype=torch.float64)
    found = np.zeros_like(samples)
    searched = 0
    for batch in iterate_once(real, max_batch(*real.shape[:2]), indices=drawn):
        if not len(batch.images):
            continue
        images = to_uint8(batch.images)
        searched += len(images)
        least, at = squared_distances(asked, _small(images)).min(dim=1)
        for number in (least < best).nonzero()[:, 0].tolist():
            best[number], found[number] = least[number], images[at[number]]
    if not searched:
        raise DataError(f"none of the {len(drawn)} training images to search could be read")
    height, width = _size(real.shape[:2])
    averaged = "" if (height, width) == real.shape[:2] else f" averaged to {height} x {width}"
    among = f"{searched} training images" if searched == len(real) else f"{searched} of {len(real)} training images"
    return Nearest(found, f"pixels{averaged}, among {among}")


def _size(sides: tuple[int, int]) -> tuple[int, int]:
    factor = max(1.0, max(sides) / SIDE)
    return max(1, round(sides[0] / factor)), max(1, round(sides[1] / factor))


def _small(images: UInt8[np.ndarray, "n H W c"]) -> Float[Tensor, "n f"]:
    pixels = torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, 1).float()
    return F.adaptive_avg_pool2d(pixels, _size(images.shape[1:3])).flatten(1).double()
