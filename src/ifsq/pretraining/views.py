"""Views of images, cropped, mirrored and recoloured, and where the same places lie in two of them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Where views were taken, one a row: the centre of each and half its sides, in coordinates of the image, -1 to 1.

    A negative half side in the first column is a mirrored view. Coordinates are (x, y), as torch's.
    """

    centre: Float[Tensor, "b 2"]
    half: Float[Tensor, "b 2"]

    def inside(self, places: Float[Tensor, "b p 2"]) -> Float[Tensor, "b p 2"]:
        """Coordinates in the view of places in the image."""
        return (places - self.centre[:, None]) / self.half[:, None]


def draw_frames(count: int, smallest: float, rng: torch.Generator) -> Frame:
    """Square views with a side of ``smallest`` to 1 times the image's, anywhere in it, every other one mirrored."""
    half = smallest + (1 - smallest) * torch.rand(count, 1, generator=rng, device=rng.device)
    centre = (2 * torch.rand(count, 2, generator=rng, device=rng.device) - 1) * (1 - half)
    mirror = torch.randint(2, (count, 1), generator=rng, device=rng.device) * 2 - 1
    return Frame(centre, torch.cat([half * mirror, half], dim=1))


def take(images: Float[Tensor, "b c H W"], frames: Frame) -> Float[Tensor, "b c H W"]:
    """The views, resampled to the size of the images."""
    theta = torch.cat([torch.diag_embed(frames.half), frames.centre[:, :, None]], dim=2)  # b 2 3
    places = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="border", align_corners=False)


def common_places(one: Frame, two: Frame, count: int, rng: torch.Generator) -> Float[Tensor, "b p 2"]:
    """Places of the images that lie in both views, drawn evenly over what they have in common."""
    low = torch.maximum(one.centre - one.half.abs(), two.centre - two.half.abs())
    high = torch.minimum(one.centre + one.half.abs(), two.centre + two.half.abs())
    share = torch.rand(len(low), count, 2, generator=rng, device=rng.device)
    return low[:, None] + (high - low)[:, None] * share


def features_at(maps: Float[Tensor, "b f h w"], places: Float[Tensor, "b p 2"]) -> Float[Tensor, "b p f"]:
    """Features at coordinates of a view, bilinear between its patches."""
    found = F.grid_sample(maps, places[:, :, None], padding_mode="border", align_corners=False)
    return found[..., 0].transpose(1, 2)


def recolour(images: Float[Tensor, "b 3 H W"], colour: float, noise: float, rng: torch.Generator) -> Tensor:
    """Brightness, contrast and channels changed by up to ``colour``, and noise added; an image each by its own."""
    count = len(images)

    def factor(channels: int, share: float = 1.0) -> Tensor:
        drawn = torch.rand(count, channels, 1, 1, generator=rng, device=rng.device)
        return 1 + colour * share * (2 * drawn - 1)

    mean = images.mean(dim=(2, 3), keepdim=True)
    x = (images - mean) * factor(1) + mean  # contrast
    x = (x + 1) * factor(1) * factor(3, 0.5) - 1  # brightness and colour, black stays black
    return x + noise * torch.randn(images.shape, generator=rng, device=rng.device)
