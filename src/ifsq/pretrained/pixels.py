"""Features without a network: an image averaged to 8 x 8 pixels.

They see colours and coarse layout alone. For a check of plumbing and speed: a distance of them says little of quality.
"""

from collections.abc import Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ifsq.pretrained.network import FeatureNetwork

GRID = 8


class Pixels(FeatureNetwork):
    """Means over an 8 x 8 grid of cells, in [0, 1], 3 channels."""

    name, pooled = "pixels", "192"
    widths = MappingProxyType({"192": 3 * GRID * GRID})
    smallest = GRID

    @torch.no_grad()
    def forward(
        self, images: UInt8[Tensor, "b c H W"], wanted: Sequence[str] = ("192",)
    ) -> dict[str, Float[Tensor, "b _"]]:
        """See `FeatureNetwork.forward`."""
        self.check(images, wanted)
        with torch.autocast(images.device.type, enabled=False):
            cells = F.adaptive_avg_pool2d(images.float() / 255, GRID).expand(-1, 3, -1, -1)
        return dict.fromkeys(wanted, cells.flatten(1))
